filigree_test(comm_test LABEL quick RANKS 1 2 3 4
  SOURCES comm_collectives_test.cc comm_flat_test.cc
  DEPS filigree_comm filigree_kernels_cpu)
filigree_test(link_model_test LABEL quick SOURCES link_model_test.cc DEPS filigree_comm)
