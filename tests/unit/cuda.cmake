# Host code of kernels/cuda, tested without a GPU and without nvcc.
filigree_test(cuda_block_schedule_test LABEL quick
  SOURCES cuda_block_schedule_test.cc DEPS filigree_block_schedule)
filigree_test(cuda_mma_indices_test LABEL quick SOURCES cuda_mma_indices_test.cc DEPS filigree_base)
filigree_test(sddmm_plan_test LABEL quick
  SOURCES sddmm_plan_test.cc DEPS filigree_block_schedule)
