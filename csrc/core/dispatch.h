// SPDX-License-Identifier: Apache-2.0
// From run-time values to compile-time ones. Each helper calls its lambda with a tag:
//   dispatch_float(x.dtype, "layer_norm: x", [&](auto t) { using T = typename decltype(t)::type; ... });
//   dispatch_device(x.device, "layer_norm", [&](auto isa) { cpu::f<isa()>(a); }, [&] { cuda::f(a, s); });
#pragma once
#include <string>
#include <type_traits>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/device.h"
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

#ifdef VA_WITH_CUDA
inline constexpr bool kWithCuda = true;
#else
inline constexpr bool kWithCuda = false;
#endif

// In a build without CUDA the cuda lambda is never instantiated, so it needs no stubs to link.
template <class Cpu, class Cuda>
void dispatch_device(Device device, const char* op, Cpu&& cpu, Cuda&& cuda) {
  if (device.type == DeviceType::cpu) return dispatch_isa(cpu);
  if constexpr (kWithCuda) {
    cuda();
  } else {
    fail(std::string(op) + ": the tensors are on a GPU, but this build of vision_accel has no CUDA");
  }
}

}  // namespace va
