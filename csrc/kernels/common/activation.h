// SPDX-License-Identifier: Apache-2.0
// The activations that ops can fuse. Their arithmetic is in activation_math.h, for *_cpu.cpp files only.
#pragma once
#include <string>
#include <type_traits>

#include "core/check.h"

namespace va {

enum class Activation { none, gelu, gelu_tanh, quick_gelu, silu };

inline Activation parse_activation(const std::string& name, const char* what) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "quick_gelu") return Activation::quick_gelu;
  if (name == "silu") return Activation::silu;
  fail(std::string(what) + " must be none, gelu, gelu_tanh, quick_gelu or silu, got '" + name + "'");
}

// dispatch_activation(kind, [&](auto act) { using F = ActivationFn<act()>; ... });
template <class F>
void dispatch_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::none:
      return f(std::integral_constant<Activation, Activation::none>{});
    case Activation::gelu:
      return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return f(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::quick_gelu:
      return f(std::integral_constant<Activation, Activation::quick_gelu>{});
    case Activation::silu:
      return f(std::integral_constant<Activation, Activation::silu>{});
  }
}

}  // namespace va
