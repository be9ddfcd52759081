filigree_test(data_test LABEL quick
  SOURCES data_shard_test.cc data_loader_test.cc data_text_test.cc data_prepare_test.cc
  DEPS filigree_data ZLIB::ZLIB PkgConfig::ZSTD)
