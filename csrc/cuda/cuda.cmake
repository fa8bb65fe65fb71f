# SPDX-License-Identifier: Apache-2.0
# Build the CUDA kernels: _cuda, a separate module that the rest does not need; and _cuda_on_host, the
# same kernels compiled for the host, for tests on machines without a GPU.

# What update.cu is compiled for, once for each.
set(CUDA_VARIANTS float32 float64 half)

# A module from csrc/cuda. The kernels are `folder`/*.`extension`, compiled with the options that follow.
function(add_cuda_module name folder extension)
  pybind11_add_module(${name} NO_EXTRAS csrc/python/cuda_module.cc csrc/cuda/launch_plan.cc csrc/cuda/c_abi.cc)
  add_library(${name}_common OBJECT
    ${folder}/reductions.${extension} ${folder}/sparse_rows.${extension}
    ${folder}/tensor_sums.${extension} ${folder}/update_low_precision.${extension})
  set(libraries ${name}_common)
  foreach(variant ${CUDA_VARIANTS})
    add_library(${name}_${variant} OBJECT ${folder}/update.${extension})
    target_compile_definitions(${name}_${variant} PRIVATE
      MXADAMAX_VARIANT=${variant} MXADAMAX_KERNELS=kernels_${variant})
    list(APPEND libraries ${name}_${variant})
  endforeach()
  foreach(library ${libraries})
    target_include_directories(${library} PRIVATE csrc)
    target_compile_options(${library} PRIVATE ${ARGN})
  endforeach()
  target_include_directories(${name} PRIVATE csrc)
  target_compile_definitions(${name} PRIVATE MXADAMAX_MODULE=${name})
  target_link_libraries(${name} PRIVATE ${libraries})
  install(TARGETS ${name} DESTINATION mxadamax)
endfunction()

if(MXADAMAX_CUDA_ON_HOST)
  foreach(source reductions sparse_rows tensor_sums update update_low_precision)
    file(CONFIGURE OUTPUT on_host/${source}.cc CONTENT "#include \"cuda/${source}.cu\"\n")
  endforeach()
  # Compiling takes longer than the tests, so little is optimized. The pragmas are nvcc's. No test
  # has arrays of 2^32 elements: -Werror=conversion finds an index that is cut to 32 bits.
  add_cuda_module(_cuda_on_host ${CMAKE_CURRENT_BINARY_DIR}/on_host cc
    -O1 -ffp-contract=off -Wno-unknown-pragmas -Werror=conversion -Wno-sign-conversion)
  foreach(target _cuda_on_host _cuda_on_host_common)
    target_compile_definitions(${target} PRIVATE MXADAMAX_CUDA_ON_HOST)
  endforeach()
  foreach(variant ${CUDA_VARIANTS})
    target_compile_definitions(_cuda_on_host_${variant} PRIVATE MXADAMAX_CUDA_ON_HOST)
  endforeach()
  target_compile_definitions(_cuda_on_host PRIVATE
    MXADAMAX_CUDA_ARCHITECTURES="host" MXADAMAX_CUDA_COMPILER="${CMAKE_CXX_COMPILER_VERSION}")
endif()

if(NOT MXADAMAX_CUDA)
  return()
endif()
if(MXADAMAX_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "mxadamax: no CUDA compiler that works, so no kernels for GPUs")
    return()
  endif()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# Set below, in nvcc's own options.
set(CMAKE_CUDA_ARCHITECTURES OFF)
enable_language(CUDA)
find_package(CUDAToolkit)
set(missing "")
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.2)
  set(missing "CUDA 11.2 or later, found ${CMAKE_CUDA_COMPILER_VERSION}")
elseif(NOT TARGET CUDA::cudart_static)
  set(missing "the static runtime of CUDA, which was not found")
endif()
if(missing)
  if(MXADAMAX_CUDA STREQUAL "AUTO")
    message(STATUS "mxadamax: no kernels for GPUs, which need ${missing}")
    return()
  endif()
  message(FATAL_ERROR "mxadamax: kernels for GPUs need ${missing}")
endif()

# A GPU runs machine code of its own or an older minor version of its generation; for others the driver
# compiles PTX, once. All machine code comes from one PTX, for the oldest architecture: the kernels use
# nothing newer, and a PTX for each would take time.
set(known 75 80 86)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  list(PREPEND known 70)
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 11.8)
  list(APPEND known 89 90)
endif()
list(GET known 0 oldest)
if(MXADAMAX_CUDA_ARCHITECTURES STREQUAL "all")
  set(list ${known})
elseif(MXADAMAX_CUDA_ARCHITECTURES STREQUAL "default")
  # The GPUs of most data centers, for a short build; PTX for all others.
  set(list 80)
  if(90 IN_LIST known)
    list(APPEND list 90)
  endif()
else()
  set(list ${MXADAMAX_CUDA_ARCHITECTURES})
  list(SORT list COMPARE NATURAL)
  list(GET list 0 oldest)
endif()
list(TRANSFORM list PREPEND "sm_" OUTPUT_VARIABLE code)
list(JOIN code "," code)
set(generated "SHELL:-gencode arch=compute_${oldest},code=[${code},compute_${oldest}]")
string(REPLACE ";" ", " architectures "${list}, PTX ${oldest}")
message(STATUS "mxadamax: kernels for GPUs with CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${architectures}")

set(warnings "")
if(MXADAMAX_WERROR)
  set(warnings "-Werror=all-warnings")
endif()
add_cuda_module(_cuda csrc/cuda cu
  ${generated} -fmad=false -prec-div=true -prec-sqrt=true -ftz=false ${warnings}
  "SHELL:-Xptxas -warn-spills" -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas)
target_compile_definitions(_cuda PRIVATE
  MXADAMAX_CUDA_ARCHITECTURES="${architectures}"
  MXADAMAX_CUDA_COMPILER="${CMAKE_CUDA_COMPILER_VERSION}")
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
