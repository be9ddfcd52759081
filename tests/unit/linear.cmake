filigree_test(linear_test LABEL quick
  SOURCES linear_test.cc linear_start_test.cc joined_dense_test.cc joined_formed_test.cc
  DEPS filigree_linear filigree_model filigree_kernels_cpu)
filigree_test(sltrain_test LABEL quick
  SOURCES sltrain_configs_test.cc sltrain_parity_test.cc sltrain_published_test.cc
  DEPS filigree_trainer filigree_config filigree_kernels_cpu)
target_compile_definitions(sltrain_test PRIVATE FILIGREE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
# Small products: threads would wait for each other longer than they work.
set_tests_properties(sltrain_test PROPERTIES ENVIRONMENT "OMP_NUM_THREADS=1;OPENBLAS_NUM_THREADS=1")
filigree_test(input_grams_test LABEL quick SOURCES input_grams_test.cc
  DEPS filigree_linear filigree_kernels_cpu)
