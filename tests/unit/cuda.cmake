# Host code of kernels/cuda, tested without a GPU and without nvcc.
filigree_test(cuda_block_schedule_test LABEL quick
  SOURCES cuda_block_schedule_test.cc ${CMAKE_SOURCE_DIR}/kernels/cuda/block_schedule.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/sddmm_schedule.cc
  DEPS filigree_base)
filigree_test(cuda_mma_indices_test LABEL quick SOURCES cuda_mma_indices_test.cc DEPS filigree_base)
