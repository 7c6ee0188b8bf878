// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/register.h"
#include "core/build_info.h"
#include "core/cpu_features.h"
#include "core/parallel.h"
#include "kernels/common/fma_peak.h"
#ifdef VA_WITH_SIMT
#include "simt/selftest.h"
#endif

namespace va {

void register_runtime(pybind11::module_& m) {
  m.def("version", &version);
  m.def("cuda_status", &cuda_status);
  m.def("available_isas", &available_isas);
  m.def("active_isa", [] { return name_of(active_isa()); });
  m.def("set_isa", &set_isa, pybind11::arg("name"));
#ifdef VA_WITH_SIMT
  m.def("simt_selftest", &simt::selftest, pybind11::arg("mistake"));
  m.def("set_simt_mode", &set_simt_mode, pybind11::arg("on"));
#endif
  m.def("max_threads", &max_threads);
  m.def("set_own_threads", &set_own_threads, pybind11::arg("n"));
  m.def("threading_backend", &threading_backend);
  m.def("fma_peak", &fma_peak, pybind11::arg("seconds") = 0.2, NoGil());
}

}  // namespace va
