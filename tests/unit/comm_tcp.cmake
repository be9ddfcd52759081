filigree_test(comm_tcp_test LABEL quick SOURCES comm_tcp_test.cc comm_watchdog_test.cc
  DEPS filigree_comm filigree_kernels_cpu)
