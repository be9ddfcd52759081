filigree_test(linear_test LABEL quick SOURCES linear_test.cc
  DEPS filigree_linear filigree_model filigree_kernels_cpu)
