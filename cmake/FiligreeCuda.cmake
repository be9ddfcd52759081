# CMake 3.25 is older than CUDA 13 and does not know how its compiler is told the language standard.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# Every card since Ampere: Hopper by name, the others through sm_80's code or its PTX. Tests that only
# compile ask for Hopper alone.
set(FILIGREE_CUDA_ARCHITECTURES "80;90-real" CACHE STRING
  "Architectures of the general device code, as CMAKE_CUDA_ARCHITECTURES")

# Device code for Hopper only: wgmma exists under the architecture-specific name alone.
function(filigree_cuda_target name)
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES 90a-real)
endfunction()
# Device code for all the others.
function(filigree_cuda_general_target name)
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${FILIGREE_CUDA_ARCHITECTURES}")
endfunction()
