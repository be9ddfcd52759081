filigree_test(cpu_test LABEL quick
  SOURCES cpu_attention_test.cc cpu_dense_test.cc cpu_device_test.cc cpu_distillation_test.cc cpu_draw_test.cc
          cpu_elementwise_test.cc cpu_gelu_code_test.cc cpu_loss_test.cc cpu_narrow_grads_test.cc cpu_sparse_test.cc
  DEPS filigree_kernels_cpu)
# Again with the loops of processors that lack what this one has.
set(isas baseline)
if(EXISTS /proc/cpuinfo)
  file(STRINGS /proc/cpuinfo has_avx2 REGEX "^flags.* avx2" LIMIT_COUNT 1)
  if(has_avx2)
    list(APPEND isas avx2)
  endif()
endif()
foreach(isa ${isas})
  add_test(NAME cpu_test_${isa} COMMAND cpu_test)
  set_tests_properties(cpu_test_${isa} PROPERTIES LABELS quick TIMEOUT 600
    ENVIRONMENT FILIGREE_CPU_ISA=${isa})
endforeach()
filigree_test(compact_state_test LABEL quick SOURCES compact_state_test.cc
  DEPS filigree_checkpoint filigree_kernels_cpu)
target_compile_definitions(compact_state_test PRIVATE FILIGREE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
