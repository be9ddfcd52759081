filigree_test(compaction_test LABEL quick RANKS 1 2 4
  SOURCES compaction_test.cc
  DEPS filigree_trainer filigree_pruning filigree_kernels_cpu filigree_comm)
