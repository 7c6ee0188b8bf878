// SPDX-License-Identifier: Apache-2.0
// Which CUTLASS kernel a product goes to. The kernels themselves are compiled elsewhere, one in a file.
#include <algorithm>
#include <atomic>
#include <string>

#include "core/build_info.h"
#include "kernels/linear/linear_tiles.h"

namespace va::linear_gemm {
namespace {

std::atomic<int> forced{-1};  // a Choice that tune wants

struct Gpu {
  int major = 0, minor = 0;
  int64_t processors = 0;
};

Gpu this_gpu() {
  int device = 0;
  Gpu gpu;
  simt::cuda_check(cudaGetDevice(&device), "cudaGetDevice");
  cudaDeviceGetAttribute(&gpu.major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&gpu.minor, cudaDevAttrComputeCapabilityMinor, device);
  gpu.processors = simt::multiprocessors();
  return gpu;
}

// For a product of m rows, 0 in deterministic mode; hopper: whether the sm_90a kernels can take it.
Choice choose_tile(const Gpu& gpu, bool hopper, Major form, int64_t m, const Gemm& g) {
  const auto wanted = static_cast<Choice>(forced.load());
  if (forced >= 0 && (hopper || !is_sm90(wanted))) return wanted;
  return choose(kMeasured, gpu.major, hopper, form, m, g.n, g.k, gpu.processors);
}

bool along_k(const Operand& x) { return x.col == 1; }

// The bytes to which every run of an operand's contiguous axis is aligned: 16, 4 or fewer.
int64_t alignment(const Operand& x, int64_t rows, int64_t k, int64_t size) {
  const int64_t run = along_k(x) ? k : rows, ld = along_k(x) ? x.row : x.col;
  const auto address = reinterpret_cast<uintptr_t>(x.data);
  int64_t bits = static_cast<int64_t>(address) | (run * size) | (ld * size) | 16;
  return bits & -bits;
}

bool fits_int(const Gemm& g) {
  constexpr int64_t kMost = INT32_MAX - 256;
  for (const int64_t x : {g.m, g.n, g.k, g.a.row, g.a.col, g.b.row, g.b.col})
    if (x > kMost || x < 0) return false;
  return true;
}

template <class F>
bool with_math(const Gemm& g, F&& f) {
  switch (g.dtype) {
    case DType::f16:
      return f(std::integral_constant<Math, Math::f16>{}), true;
    case DType::bf16:
      return f(std::integral_constant<Math, Math::bf16>{}), true;
    case DType::f32:
      return g.tf32 ? f(std::integral_constant<Math, Math::tf32>{})
                    : f(std::integral_constant<Math, Math::f32>{}),
             true;
    default:
      return false;
  }
}

template <Math math, class F>
void with_tile(Tile tile, F&& f) {
  if (tile == Tile::large) return f(std::integral_constant<Tile, Tile::large>{});
  if constexpr (math == Math::f16 || math == Math::bf16) {
    if (tile == Tile::small) return f(std::integral_constant<Tile, Tile::small>{});
  }
  return f(std::integral_constant<Tile, Tile::loose>{});
}

#if VA_LINEAR_SM90
template <class F>
void with_tile(Tile90 tile, F&& f) {
  if (tile == Tile90::large) return f(std::integral_constant<Tile90, Tile90::large>{});
  return f(std::integral_constant<Tile90, Tile90::medium>{});
}

template <class F>
bool with_math16(const Gemm& g, F&& f) {
  if (g.dtype == DType::f16) return f(std::integral_constant<Math, Math::f16>{}), true;
  if (g.dtype == DType::bf16) return f(std::integral_constant<Math, Math::bf16>{}), true;
  return false;
}

// What TMA can describe: rows on 16-byte boundaries that do not overlap.
bool for_tma(const void* p, int64_t row, int64_t cols, int64_t size) {
  return !p ||
         (row >= cols && (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(row * size)) % 16 == 0);
}

// The form that computes this epilogue; false when the 2.x kernels must.
bool find_form(const Gemm& g, Form& form) {
  const Epilogue& e = g.epilogue;
  if (!along_k(g.a)) {
    form = Form::dw;
    return !along_k(g.b) && !e.residual && !e.wide;
  }
  if (!along_k(g.b)) {
    form = e.input ? Form::dx_input : Form::dx;
    if (e.input) return true;
    return !e.bias && !e.scale && !e.residual && !e.z && e.activation == Activation::none;
  }
  if (e.residual) {
    form = e.wide ? Form::wide : Form::residual;
    return !e.z && (!e.scale || e.wide_scale == e.wide);
  }
  form = e.z ? Form::saved : Form::plain;
  return !e.scale && !e.wide;
}

template <class F>
void with_form(Form form, F&& f) {
  switch (form) {
    case Form::plain:
      return f(std::integral_constant<Form, Form::plain>{});
    case Form::saved:
      return f(std::integral_constant<Form, Form::saved>{});
    case Form::residual:
      return f(std::integral_constant<Form, Form::residual>{});
    case Form::wide:
      return f(std::integral_constant<Form, Form::wide>{});
    case Form::dx:
      return f(std::integral_constant<Form, Form::dx>{});
    case Form::dx_input:
      return f(std::integral_constant<Form, Form::dx_input>{});
    case Form::dw:
      return f(std::integral_constant<Form, Form::dw>{});
  }
}

bool run_hopper(const Gemm& g, Tile90 tile90, void* scratch, int64_t scratch_bytes, Stream stream) {
  const Epilogue& e = g.epilogue;
  const int64_t size = e.wide ? 4 : 2;
  Form form = Form::plain;
  if (!e.vectors || !for_tma(e.y, e.y_row, g.n, size) || !for_tma(e.residual, e.residual_row, g.n, size) ||
      !for_tma(e.z, e.z_row, g.n, 2) || !for_tma(e.input, e.input_row, g.n, 2) || !find_form(g, form))
    return false;
  return with_math16(g, [&](auto math) {
    with_form(form, [&](auto f) {
      with_tile(tile90, [&](auto tile) { run_sm90<math(), f(), tile()>(g, scratch, scratch_bytes, stream); });
    });
  });
}
#endif

}  // namespace

void force_tile(const std::string& name) {
  const char* const names[] = {"sm80_large", "sm80_small", "sm90_large", "sm90_medium"};
  forced = -1;
  if (name.empty()) return;
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) forced = i;
  if (forced < 0) fail("linear: tile must be sm80_large, sm80_small, sm90_large or sm90_medium, got " + name);
}

int64_t tensor_core_scratch([[maybe_unused]] const Gemm& g) {
  int64_t bytes = 0;
#if VA_LINEAR_SM90
  if (const Gpu gpu = this_gpu(); gpu.major == 9 && fits_int(g) && g.m > 0 && g.n > 0 && g.k > 0) {
    with_math16(g, [&](auto math) {
      for (const Tile90 t : {Tile90::large, Tile90::medium})
        with_tile(t, [&](auto tile) { bytes = std::max(bytes, sm90_scratch<math(), Form::dw, tile()>(g)); });
    });
  }
#endif
  return bytes;
}

bool run_tensor_cores(const Gemm& gemm, [[maybe_unused]] void* scratch,
                      [[maybe_unused]] int64_t scratch_bytes, Stream stream) {
  const Gpu gpu = this_gpu();
  if (gpu.major < 8)
    fail("linear: needs a GPU of compute capability 8.0 or newer, this one has " + std::to_string(gpu.major) +
         "." + std::to_string(gpu.minor) + " (vision_accel was " + cuda_status() + ")");
  Gemm g = gemm;
  const int64_t size = size_of(g.dtype);
  if (g.dtype == DType::f64 || g.k == 0 || !fits_int(g)) return false;
  const bool a_k = along_k(g.a), b_k = along_k(g.b);
  if ((!a_k && g.a.row != 1) || (!b_k && g.b.row != 1) || (!a_k && b_k)) return false;
  // Rows that overlap (a broadcast axis) have no leading dimension.
  if ((a_k ? g.a.row < g.k : g.a.col < g.m) || (b_k ? g.b.row < g.k : g.b.col < g.n)) return false;
  const int64_t align = std::min(alignment(g.a, g.m, g.k, size), alignment(g.b, g.n, g.k, size));
  if (align < 4) return false;
  const Major form = !a_k ? Major::mm : !b_k ? Major::km : Major::kk;
  const int64_t m = g.deterministic ? 0 : g.m;
#if VA_LINEAR_SM90
  if (gpu.major == 9 && align >= 16 && size == 2) {
    const Choice choice = choose_tile(gpu, true, form, m, g);
    const Tile90 tile = choice == Choice::sm90_large ? Tile90::large : Tile90::medium;
    if (is_sm90(choice) && run_hopper(g, tile, scratch, scratch_bytes, stream)) return true;
  }
#endif
  if (g.splits > 1) g.partial = scratch;
  const Choice choice = choose_tile(gpu, false, form, g.splits > 1 ? 0 : m, g);
  Tile tile = choice == Choice::sm80_small ? Tile::small : Tile::large;
  if (align < 16 || (tile == Tile::small && size == 4)) tile = Tile::loose;
  with_math(g, [&](auto math) {
    with_tile<math()>(tile, [&](auto t) {
      switch (form) {
        case Major::mm:
          return run_sm80<math(), Major::mm, t()>(g, stream);
        case Major::km:
          return run_sm80<math(), Major::km, t()>(g, stream);
        case Major::kk:
          return run_sm80<math(), Major::kk, t()>(g, stream);
      }
    });
  });
  if (g.splits > 1) join_splits(g, stream);
  return true;
}

}  // namespace va::linear_gemm
