// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

namespace va {
namespace {

std::atomic<bool> forked_child{false};
thread_local bool inside_region = false;

// The OpenMP runtime that is in this process already, found by its compiler ABI. Never loaded by us.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
};

#if defined(__linux__)
// libgomp may be loaded after us (import order), so an unsuccessful search is repeated at the next call.
const OpenMp* openmp() {
  static OpenMp api;
  static std::atomic<bool> found{false};
  if (found.load(std::memory_order_acquire)) return &api;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  void* lib = dlopen("libgomp.so.1", RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL);
  if (!lib) return nullptr;
  OpenMp o;
  o.parallel = reinterpret_cast<decltype(o.parallel)>(dlsym(lib, "GOMP_parallel"));
  o.thread_num = reinterpret_cast<decltype(o.thread_num)>(dlsym(lib, "omp_get_thread_num"));
  o.num_threads = reinterpret_cast<decltype(o.num_threads)>(dlsym(lib, "omp_get_num_threads"));
  o.max_threads = reinterpret_cast<decltype(o.max_threads)>(dlsym(lib, "omp_get_max_threads"));
  o.in_parallel = reinterpret_cast<decltype(o.in_parallel)>(dlsym(lib, "omp_in_parallel"));
  if (!o.parallel || !o.thread_num || !o.num_threads || !o.max_threads || !o.in_parallel) return nullptr;
  api = o;
  found.store(true, std::memory_order_release);
  return &api;
}
#else
const OpenMp* openmp() { return nullptr; }
#endif

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// One job at a time; a second caller waits its turn. Workers sleep between jobs.
class Pool {
 public:
  static Pool& instance() {
    static Pool* pool = new Pool;  // never destroyed: workers may outlive static destructors
    return *pool;
  }

  int size() const { return size_; }
  void resize(int n) {
    const std::lock_guard<std::mutex> turn(turn_);
    size_ = std::max(1, n);
  }

  void run(int parts, void (*body)(void*, int part), void* data) {
    const std::lock_guard<std::mutex> turn(turn_);
    while (static_cast<int>(workers_.size()) < parts - 1) {
      const int index = static_cast<int>(workers_.size());
      workers_.emplace_back([this, index] { work(index); });
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      data_ = data;
      parts_ = parts;
      pending_ = parts - 1;
      ++generation_;
    }
    wake_.notify_all();
    body(data, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void work(int index) {
    inside_region = true;
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index + 1 >= parts_) continue;
      const auto body = body_;
      void* const data = data_;
      lock.unlock();
      body(data, index + 1);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  int size_ = usable_cores();
  void (*body_)(void*, int) = nullptr;
  void* data_ = nullptr;
  int parts_ = 0, pending_ = 0;
  uint64_t generation_ = 0;
};

struct Job {
  RangeFn fn;
  int64_t n, chunk;
  int parts;
  std::mutex mutex;
  std::exception_ptr error;

  void run(int part) {
    const bool outer = inside_region;
    inside_region = true;
    try {
      const int64_t begin = part * chunk, end = std::min(n, begin + chunk);
      if (begin < end) fn(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
    inside_region = outer;
  }
};

#if defined(__unix__) || defined(__APPLE__)
// Neither libgomp nor a thread pool survives fork: the child works alone.
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
#endif

}  // namespace

int max_threads() {
  if (forked_child) return 1;
  const OpenMp* omp = openmp();
  return omp ? omp->max_threads() : Pool::instance().size();
}

void set_own_threads(int n) { Pool::instance().resize(n); }

const char* threading_backend() {
  if (forked_child) return "serial (forked child)";
  return openmp() ? "openmp (shared)" : "own pool";
}

void parallel_for(int64_t n, int64_t grain, RangeFn fn) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const OpenMp* omp = forked_child ? nullptr : openmp();
  const bool serial = inside_region || n <= grain || forked_child || (omp && omp->in_parallel());
  const int threads = serial ? 1 : (omp ? omp->max_threads() : Pool::instance().size());
  const int parts = static_cast<int>(std::min<int64_t>(threads, (n + grain - 1) / grain));
  if (parts <= 1) return fn(0, n);

  Job job{fn, n, (n + parts - 1) / parts, parts, {}, nullptr};
  if (omp) {
    struct Call {
      Job* job;
      const OpenMp* omp;
    } call{&job, omp};
    // The runtime may give fewer threads than asked for: each takes every num_threads-th part.
    omp->parallel(
        [](void* p) {
          auto* c = static_cast<Call*>(p);
          const int step = c->omp->num_threads();
          for (int part = c->omp->thread_num(); part < c->job->parts; part += step) c->job->run(part);
        },
        &call, static_cast<unsigned>(parts), 0);
  } else {
    Pool::instance().run(parts, [](void* p, int part) { static_cast<Job*>(p)->run(part); }, &job);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace va
