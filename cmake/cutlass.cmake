# SPDX-License-Identifier: Apache-2.0
# Finds CUTLASS's headers: CUTLASS_DIR (a checkout or an unpacked release), else the pinned package of PyPI,
# without its dependencies and checked against its hash. Sets VA_CUTLASS_INCLUDE.
set(CUTLASS_DIR "" CACHE PATH "CUTLASS 4.2 sources; empty: the pinned nvidia-cutlass package is downloaded")
set(va_cutlass_pin "nvidia-cutlass==4.2.0.0")
set(va_cutlass_sha256 f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6)

if(CUTLASS_DIR)
  set(VA_CUTLASS_INCLUDE "${CUTLASS_DIR}/include")
else()
  set(unpacked "${PROJECT_SOURCE_DIR}/build/cutlass-4.2.0") # shared by all build directories
  set(VA_CUTLASS_INCLUDE "${unpacked}/cutlass_library/source/include")
  if(NOT EXISTS "${VA_CUTLASS_INCLUDE}/cutlass/version.h")
    find_package(Python REQUIRED COMPONENTS Interpreter)
    file(MAKE_DIRECTORY "${unpacked}")
    file(WRITE "${unpacked}/pin.txt" "${va_cutlass_pin} --hash=sha256:${va_cutlass_sha256}\n")
    message(STATUS "vision_accel: downloading ${va_cutlass_pin}")
    set(download download -qq --disable-pip-version-check --no-deps --require-hashes --dest "${unpacked}"
        -r "${unpacked}/pin.txt")
    execute_process(COMMAND "${Python_EXECUTABLE}" -m pip ${download} RESULT_VARIABLE failed ERROR_VARIABLE why)
    if(failed) # the Python of an isolated build has no pip of its own
      execute_process(COMMAND python3 -m pip ${download} RESULT_VARIABLE failed ERROR_VARIABLE why)
    endif()
    file(GLOB wheel "${unpacked}/nvidia_cutlass-*.whl")
    if(failed OR NOT wheel)
      message(FATAL_ERROR "vision_accel: ${va_cutlass_pin} could not be downloaded; give its sources with "
                          "-DCUTLASS_DIR=... (or build with VISION_ACCEL_CUDA=OFF)\n${why}")
    endif()
    file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${unpacked}" PATTERNS "cutlass_library/source/include/*")
  endif()
endif()
if(NOT EXISTS "${VA_CUTLASS_INCLUDE}/cutlass/version.h")
  message(FATAL_ERROR "vision_accel: no CUTLASS in ${VA_CUTLASS_INCLUDE} (no cutlass/version.h)")
endif()

# One CUTLASS file can take 5 GB to compile: as many at once as the memory allows.
cmake_host_system_information(RESULT va_memory_mb QUERY TOTAL_PHYSICAL_MEMORY)
math(EXPR va_cutlass_jobs "${va_memory_mb} / 5000")
if(va_cutlass_jobs LESS 1)
  set(va_cutlass_jobs 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS "cutlass=${va_cutlass_jobs}") # of Ninja
