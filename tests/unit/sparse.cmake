filigree_test(sparse_test LABEL quick SOURCES sparse_test.cc DEPS filigree_sparse)
