filigree_test(checkpoint_test LABEL quick
  SOURCES checkpoint_safetensors_test.cc checkpoint_test.cc
  DEPS filigree_export)
filigree_test(export_test LABEL quick
  SOURCES export_test.cc export_import_test.cc export_directory_test.cc
  DEPS filigree_export nlohmann_json::nlohmann_json)
filigree_test(export_uneven_test LABEL quick SOURCES export_uneven_test.cc
  DEPS filigree_trainer filigree_export filigree_kernels_cpu nlohmann_json::nlohmann_json)
filigree_test(trainer_test LABEL quick
  SOURCES planned_memory_test.cc replayed_passes_test.cc trainer_test.cc update_forms_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(initial_values_test LABEL quick RANKS 1 2 3 SOURCES initial_values_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(padding_test LABEL quick SOURCES padding_test.cc
  DEPS filigree_trainer filigree_export filigree_kernels_cpu)
filigree_test(exact_exchange_test LABEL quick RANKS 1 2 3 4 SOURCES exact_exchange_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(exchange_order_test LABEL quick SOURCES exchange_order_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(scaling_test LABEL quick SOURCES published_scaling_test.cc scaling_model_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
filigree_test(planned_gpu_test LABEL quick SOURCES planned_gpu_test.cc
  DEPS filigree_trainer filigree_config filigree_planned_gpu)
target_compile_definitions(planned_gpu_test PRIVATE FILIGREE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
filigree_test(state_move_test LABEL quick RANKS 1 2 3 SOURCES state_move_test.cc
  DEPS filigree_trainer filigree_kernels_cpu)
