filigree_test(base_test LABEL quick SOURCES base_test.cc DEPS filigree_base)
