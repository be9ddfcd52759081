filigree_test(model_test LABEL quick
  SOURCES model_distillation_test.cc model_golden_test.cc model_gradient_test.cc model_passes_test.cc
  DEPS filigree_model filigree_checkpoint filigree_kernels_cpu)
target_compile_definitions(model_test PRIVATE
  FILIGREE_GOLDEN_DIR="${CMAKE_SOURCE_DIR}/tests/parity/golden")
