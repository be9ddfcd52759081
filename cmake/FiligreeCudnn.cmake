# Attention through cuDNN 9, where both of its parts are found; else the backend's own plain kernels serve.
#
#   The library: in the CUDA toolkit, under CUDNN_ROOT, in the system, or in Python's nvidia-cudnn-cu13.
#   The C++ front end, headers only: under CUDNN_FRONTEND_ROOT, in the system, or in build/_deps, where
#   launch/setup.sh unpacks it from Python's nvidia-cudnn-frontend.
#
# Defines FILIGREE_CUDNN_FOUND and, where it is ON, the target filigree_cudnn.
set(FILIGREE_CUDNN AUTO CACHE STRING "Attention through cuDNN: AUTO, ON or OFF")

function(filigree_find_cudnn)
  find_program(FILIGREE_PYTHON python3)
  set(wheels "")
  if(FILIGREE_PYTHON)
    execute_process(COMMAND ${FILIGREE_PYTHON} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
      OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  find_path(CUDNN_INCLUDE_DIR cudnn_graph.h
    HINTS ${CUDNN_ROOT} $ENV{CUDNN_ROOT} ${CUDAToolkit_INCLUDE_DIRS} PATHS ${wheels}/nvidia/cudnn
    PATH_SUFFIXES include)
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9
    HINTS ${CUDNN_ROOT} $ENV{CUDNN_ROOT} ${CUDAToolkit_LIBRARY_DIR} PATHS ${wheels}/nvidia/cudnn
    PATH_SUFFIXES lib64 lib)
  find_path(CUDNN_FRONTEND_INCLUDE_DIR cudnn_frontend.h
    HINTS ${CUDNN_FRONTEND_ROOT} $ENV{CUDNN_FRONTEND_ROOT} ${CMAKE_BINARY_DIR}/_deps/cudnn_frontend
          ${CMAKE_SOURCE_DIR}/build/_deps/cudnn_frontend ${CUDNN_INCLUDE_DIR}
    PATH_SUFFIXES include)
endfunction()

set(FILIGREE_CUDNN_FOUND OFF)
if(FILIGREE_CUDNN)
  filigree_find_cudnn()
  if(CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY AND CUDNN_FRONTEND_INCLUDE_DIR)
    set(FILIGREE_CUDNN_FOUND ON)
    add_library(filigree_cudnn INTERFACE)
    target_include_directories(filigree_cudnn SYSTEM INTERFACE
      ${CUDNN_FRONTEND_INCLUDE_DIR} ${CUDNN_INCLUDE_DIR})
    # Its JSON output is not used, and costs compile time.
    target_compile_definitions(filigree_cudnn INTERFACE CUDNN_FRONTEND_SKIP_JSON_LIB)
    target_link_libraries(filigree_cudnn INTERFACE ${CUDNN_LIBRARY} CUDA::nvrtc)
  elseif(NOT FILIGREE_CUDNN STREQUAL "AUTO")
    message(FATAL_ERROR "FILIGREE_CUDNN is ${FILIGREE_CUDNN}, but there is no\n"
      "  cudnn_graph.h (${CUDNN_INCLUDE_DIR}), libcudnn (${CUDNN_LIBRARY}) or cudnn_frontend.h "
      "(${CUDNN_FRONTEND_INCLUDE_DIR}); name their folders with CUDNN_ROOT and CUDNN_FRONTEND_ROOT, "
      "or run launch/setup.sh")
  endif()
endif()
message(STATUS "Filigree: attention through cuDNN ${FILIGREE_CUDNN_FOUND}")
if(FILIGREE_CUDNN AND NOT FILIGREE_CUDNN_FOUND)
  message(WARNING "no cuDNN or no front end of it (CUDNN_FRONTEND_ROOT): attention on GPUs will be "
    "several times slower; run launch/setup.sh, or set FILIGREE_CUDNN=OFF to build so on purpose")
endif()
