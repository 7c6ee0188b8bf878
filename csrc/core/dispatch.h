// SPDX-License-Identifier: Apache-2.0
// From run-time values to compile-time ones. Each helper calls its lambda with a tag:
//   dispatch_float(x.dtype, "layer_norm: x", [&](auto t) { using T = typename decltype(t)::type; ... });
//   dispatch_device(x.device, "layer_norm", [&](auto isa) { cpu::f<isa()>(a); }, [&] { cuda::f(a, s); });
#pragma once
#include <string>
#include <type_traits>

#include "core/build_info.h"
#include "core/check.h"
#include "core/cpu_features.h"
#include "core/device.h"
#include "core/device_guard.h"
#include "core/dtype.h"

namespace va {

template <class T>
struct TypeTag {
  using type = T;
};

template <class F>
void dispatch_float(DType dtype, const char* what, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::f64:
      return f(TypeTag<double>{});
    case DType::f16:
      return f(TypeTag<Half>{});
    case DType::bf16:
      return f(TypeTag<BFloat16>{});
    default:
      throw TypeError(std::string(what) + " must be float32, float64, float16 or bfloat16, got " +
                      name_of(dtype));
  }
}

template <class F>
void dispatch_isa(F&& f) {
  switch (active_isa()) {
#if defined(__aarch64__)
    default:
      return f(std::integral_constant<Isa, Isa::neon>{});
#else
#if defined(__x86_64__)
    case Isa::avx512:
      return f(std::integral_constant<Isa, Isa::avx512>{});
    case Isa::avx2:
      return f(std::integral_constant<Isa, Isa::avx2>{});
#endif
    default:
      return f(std::integral_constant<Isa, Isa::portable>{});
#endif
  }
}

// Whether the op whose .cpp includes this has CUDA kernels in this build; set by va_add_op. It differs from
// file to file, so neither it nor runs_on_gpu may be shared between them: static, not inline.
#ifdef VA_OP_HAS_CUDA
static constexpr bool kOpHasCuda = true;
#else
static constexpr bool kOpHasCuda = false;
#endif

// Where the kernels for a tensor on this device run. In a test build (VISION_ACCEL_SIMT) the CUDA
// kernels can be run on CPU tensors by the emulator in tests/simt.
[[maybe_unused]] static bool runs_on_gpu(Device device) {
  return kOpHasCuda && (device.type == DeviceType::cuda || simt_mode());
}

// Where an op has no CUDA kernels the cuda lambda is never instantiated, so it needs no stubs to link.
template <class Cpu, class Cuda>
void dispatch_device(Device device, const char* op, Cpu&& cpu, Cuda&& cuda) {
  if constexpr (kOpHasCuda) {
    if (runs_on_gpu(device)) {
      const DeviceGuard guard(device);
      return cuda();
    }
  }
  if (device.type == DeviceType::cpu) return dispatch_isa(cpu);
  const bool built = std::string(cuda_status()).rfind("built with CUDA", 0) == 0;
  fail(std::string(op) + ": the tensors are on a GPU, but " +
       (built ? "this op has no CUDA kernel yet" : std::string("vision_accel was ") + cuda_status()));
}

}  // namespace va
