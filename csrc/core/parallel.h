// SPDX-License-Identifier: Apache-2.0
// parallel_for: splits [0, n) over threads. When an OpenMP runtime is already in the process (torch
// brings one), its team runs the work, so torch.set_num_threads is obeyed and cores are not
// oversubscribed; otherwise an own pool does. Inside a parallel region, and in a forked child,
// the work runs on the calling thread.
#pragma once
#include <cstdint>
#include <type_traits>

namespace va {

// A reference to a callable void(int64_t begin, int64_t end); the callee must outlive the call.
class RangeFn {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, RangeFn>>>
  RangeFn(F&& f)  // NOLINT: implicit by design
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* o, int64_t b, int64_t e) { (*static_cast<std::remove_reference_t<F>*>(o))(b, e); }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int64_t);
};

// Calls fn on contiguous ranges of at least `grain` items (the last may be smaller). A result must not
// depend on where the ranges are cut: that is what makes outputs equal for any number of threads.
// An exception thrown by fn is rethrown here once all ranges have ended.
void parallel_for(int64_t n, int64_t grain, RangeFn fn);

int max_threads();
void set_own_threads(int n);      // size of the own pool; torch's setting wins when torch is loaded
const char* threading_backend();  // "openmp (shared)", "own pool" or "serial (forked child)"

}  // namespace va
