filigree_test(checkpoint_test LABEL quick
  SOURCES checkpoint_safetensors_test.cc checkpoint_test.cc
  DEPS filigree_checkpoint filigree_export)
