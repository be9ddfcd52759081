filigree_test(topology_test LABEL quick SOURCES topology_published_test.cc topology_scores_test.cc topology_test.cc topology_validate_test.cc
  DEPS filigree_topology filigree_kernels_cpu)
filigree_test(topology_divergence_test LABEL quick SOURCES topology_divergence_test.cc
  DEPS filigree_trainer)
filigree_test(topology_run_test LABEL quick RANKS 1 2 4 SOURCES topology_run_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(topology_exact_test LABEL quick RANKS 1 2 3 4 SOURCES topology_exact_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(sample_tree_test LABEL quick RANKS 1 2 3 4 SOURCES sample_tree_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
