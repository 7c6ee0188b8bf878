// SPDX-License-Identifier: Apache-2.0
#include "core/device_guard.h"

#ifdef VA_SIMT
namespace va {
DeviceGuard::DeviceGuard(Device) {}
DeviceGuard::~DeviceGuard() = default;
}  // namespace va
#else

#include <cuda_runtime_api.h>

#include <string>

#include "core/check.h"

namespace va {

DeviceGuard::DeviceGuard(Device device) {
  if (device.type != DeviceType::cuda) return;
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device.index) {
    error = cudaSetDevice(device.index);
    before_ = current;
  }
  if (error != cudaSuccess) {
    fail("cuda:" + std::to_string(device.index) + " cannot be used: " + cudaGetErrorString(error));
  }
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace va
#endif
