filigree_test(linear_test LABEL quick SOURCES linear_test.cc
  DEPS filigree_linear filigree_model filigree_kernels_cpu)
filigree_test(sltrain_test LABEL quick
  SOURCES sltrain_configs_test.cc sltrain_parity_test.cc
  DEPS filigree_trainer filigree_config filigree_kernels_cpu)
target_compile_definitions(sltrain_test PRIVATE FILIGREE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
