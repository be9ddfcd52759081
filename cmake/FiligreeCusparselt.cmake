# Products with 2:4 weights through cuSPARSELt, where its header is found; the library is looked for
# when a program runs (kernels/cuda/cusparselt.h). Else these products are dense.
#
# Looked for under CUSPARSELT_ROOT, in the CUDA toolkit, in the system, in Python's
# nvidia-cusparselt-cu13, or in build/_deps, where launch/setup.sh unpacks that.
#
# Defines FILIGREE_CUSPARSELT_FOUND and, where it is ON, FILIGREE_CUSPARSELT_LIBRARY, the library's name,
# and (in the cache) CUSPARSELT_INCLUDE_DIR.
set(FILIGREE_CUSPARSELT AUTO CACHE STRING "2:4 products through cuSPARSELt: AUTO, ON or OFF")

function(filigree_find_cusparselt)
  find_program(FILIGREE_PYTHON python3)
  set(wheels "")
  if(FILIGREE_PYTHON)
    execute_process(COMMAND ${FILIGREE_PYTHON} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
      OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  set(roots ${CMAKE_BINARY_DIR}/_deps/cusparselt ${CMAKE_SOURCE_DIR}/build/_deps/cusparselt ${wheels})
  set(folders "")
  foreach(root ${roots})
    list(APPEND folders ${root}/nvidia/cu13 ${root}/nvidia/cusparselt)
  endforeach()
  find_path(CUSPARSELT_INCLUDE_DIR cusparseLt.h
    HINTS ${CUSPARSELT_ROOT} $ENV{CUSPARSELT_ROOT} ${CUDAToolkit_INCLUDE_DIRS} PATHS ${folders}
    PATH_SUFFIXES include)
  find_library(CUSPARSELT_LIBRARY NAMES cusparseLt libcusparseLt.so.0
    HINTS ${CUSPARSELT_ROOT} $ENV{CUSPARSELT_ROOT} ${CUDAToolkit_LIBRARY_DIR} PATHS ${folders}
    PATH_SUFFIXES lib64 lib)
endfunction()

set(FILIGREE_CUSPARSELT_FOUND OFF)
if(FILIGREE_CUSPARSELT)
  filigree_find_cusparselt()
  if(CUSPARSELT_INCLUDE_DIR)
    set(FILIGREE_CUSPARSELT_FOUND ON)
    # Where programs look after the dynamic loader's own places.
    set(FILIGREE_CUSPARSELT_LIBRARY libcusparseLt.so.0)
    if(CUSPARSELT_LIBRARY)
      set(FILIGREE_CUSPARSELT_LIBRARY ${CUSPARSELT_LIBRARY})
    endif()
  elseif(NOT FILIGREE_CUSPARSELT STREQUAL "AUTO")
    message(FATAL_ERROR "FILIGREE_CUSPARSELT is ${FILIGREE_CUSPARSELT}, but there is no cusparseLt.h; "
      "name its prefix with CUSPARSELT_ROOT, or run launch/setup.sh")
  endif()
endif()
message(STATUS "Filigree: 2:4 products through cuSPARSELt ${FILIGREE_CUSPARSELT_FOUND}")
