// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace va {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;
  bool operator==(const Device& o) const { return type == o.type && index == o.index; }
  bool operator!=(const Device& o) const { return !(*this == o); }
};

// A cudaStream_t as an integer; ignored on the CPU.
using Stream = uintptr_t;

}  // namespace va
