filigree_test(compaction_test LABEL quick RANKS 1 2 4 SOURCES compaction_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(saliency_test LABEL full SOURCES saliency_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
# Small products, as in sltrain_test.
set_tests_properties(saliency_test PROPERTIES ENVIRONMENT "OMP_NUM_THREADS=1;OPENBLAS_NUM_THREADS=1")
filigree_test(pruning_test LABEL quick SOURCES pruning_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(pruning_limits_test LABEL quick SOURCES pruning_limits_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
