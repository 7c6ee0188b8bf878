// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/device.h"

namespace va {

// Makes the GPU of an op's tensors the current one while its kernels are launched; nothing for the CPU.
// Defined in device_guard_cuda.cu, so only for ops with CUDA kernels.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;  // to be made current again
};

}  // namespace va
