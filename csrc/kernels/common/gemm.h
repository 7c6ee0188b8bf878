// SPDX-License-Identifier: Apache-2.0
// Matrix product with an epilogue: C[m, n] = sum_k A[m, k] B[n, k] for any strides of A and B.
//
//   gemm(Gemm<S>{m, n, k, a, b}, [&](const Tile<C>& t) { ... use t.data[r * kTileCols<C> + c] ... });
//
// The output is cut into jobs of up to kJobRows x kJobCols elements, one thread each. A job walks over k in
// blocks of kBlockK: it packs its part of A (unless A can be read in place) and, panel by panel, of B (unless
// B was packed before) and adds each tile's block sum to the job's sums, which stay in cache. The last block
// hands every finished tile to the epilogue. The block length is fixed, so an element's value depends on its
// row of A and its row of B alone: not on m, n, the number of threads or the way B was packed.
#pragma once
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/common/gemm_tile.h"

namespace va::VA_ISA {

inline constexpr int64_t kBlockK = 384;
inline constexpr int64_t kJobRows = 66 * kTileRows;  // a block of A stays in a 1 MiB L2 cache
inline constexpr int64_t kJobCols = 512;
inline constexpr int64_t kSerialWork = 1 << 18;  // FMAs below which a second thread costs more than it brings

VA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
VA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A reference to a function that packs part of an operand which has no strides: patches of an image.
template <class Result, class T>
class Gather {
 public:
  Gather() = default;
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Gather>>>
  Gather(const F& f)  // NOLINT: implicit by design
      : object_(&f), call_([](const void* o, int64_t i0, int64_t count, int64_t k0, int64_t kc, T* out) {
          return (*static_cast<const F*>(o))(i0, count, k0, kc, out);
        }) {}
  explicit operator bool() const { return object_; }
  Result operator()(int64_t i0, int64_t count, int64_t k0, int64_t kc, T* out) const {
    return call_(object_, i0, count, k0, kc, out);
  }

 private:
  const void* object_ = nullptr;
  Result (*call_)(const void*, int64_t, int64_t, int64_t, int64_t, T*) = nullptr;
};

template <class S, class C = compute_t<S>>
struct Gemm {
  int64_t m, n, k;
  Operand<S> a;               // [m, k]
  Operand<S> b;               // [n, k]; not read when packed is given
  const S* packed = nullptr;  // made by pack_all, of which columns [first, first + n) are taken
  int64_t first = 0;
  Gather<Operand<C>, C> gather_a{};  // takes the place of a, and of pack_rows
  Gather<void, S> gather_b{};        // takes the place of b, and of pack_panel
};

// A finished part of C: element (row + r, col + c) is data[r * kTileCols<C> + c].
template <class C>
struct Tile {
  const C* data;
  int64_t row, rows, col, cols;
};

// A reference to the epilogue, so that the product is compiled once and not for each epilogue.
template <class C>
class Epilogue {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Epilogue>>>
  Epilogue(const F& f)  // NOLINT: implicit by design
      : object_(&f), call_([](const void* o, const Tile<C>& t) { (*static_cast<const F*>(o))(t); }) {}
  void operator()(const Tile<C>& t) const { call_(object_, t); }

 private:
  const void* object_;
  void (*call_)(const void*, const Tile<C>&);
};

// B packed whole, as the panels [n / kTileCols][k][kTileCols].
template <class S, class C = compute_t<S>>
int64_t packed_numel(int64_t n, int64_t k) {
  return ceil_div(n, kTileCols<C>) * kTileCols<C> * k;
}
template <class S, class C = compute_t<S>>
void pack_all(const Operand<S>& b, int64_t n, int64_t k, S* out) {
  constexpr int64_t kCols = kTileCols<C>;
  parallel_for(ceil_div(n, kCols), kSerialWork / (k * kCols + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      pack_panel(b, p * kCols, smaller(kCols, n - p * kCols), 0, k, out + p * kCols * k);
  });
}

// How many jobs the row tiles and the column panels of C are cut into.
struct JobGrid {
  int64_t rows, cols;
};

// The grid with the shortest estimated time. The unit is one tile; packing a panel of B costs about one
// tile, packing a tile of A about a sixth.
inline JobGrid choose_grid(int64_t tiles, int64_t panels, int64_t max_tiles, int64_t max_panels, int threads,
                           bool packs_a, bool packs_b) {
  const int64_t least_rows = ceil_div(tiles, max_tiles), least_cols = ceil_div(panels, max_panels);
  const int64_t most_jobs = least_rows * least_cols + 4 * (threads - 1);
  JobGrid best{least_rows, least_cols};
  double best_time = 1e300;
  for (int64_t r = least_rows; r <= smaller(tiles, most_jobs / least_cols); ++r) {
    for (int64_t c = least_cols; c <= smaller(panels, most_jobs / r); ++c) {
      const auto job_tiles = static_cast<double>(ceil_div(tiles, r));
      const auto job_panels = static_cast<double>(ceil_div(panels, c));
      const double job = job_tiles * job_panels + packs_b * job_panels + packs_a * job_tiles / 6;
      const double time = static_cast<double>(ceil_div(r * c, threads)) * job;
      if (time < best_time) {
        best_time = time;
        best = {r, c};
      }
    }
  }
  return best;
}

// One job: row tiles [tile0, tile1) by column panels [panel0, panel1). Columns of a packed B are counted
// from its first panel in use, so that the first `skip` columns of panel 0 are not part of C.
template <class S, class C = compute_t<S>>
void run_job(const Gemm<S>& g, Epilogue<C> epilogue, int64_t tile0, int64_t tile1, int64_t panel0,
             int64_t panel1) {
  constexpr int64_t kCols = kTileCols<C>;
  const int64_t skip = g.packed ? g.first % kCols : 0;
  const S* const packed = g.packed ? g.packed + (g.first - skip) * g.k : nullptr;
  const int64_t row0 = tile0 * kTileRows, row1 = smaller(tile1 * kTileRows, g.m);
  const bool pack_a = g.gather_a || !readable_in_place(g.a);
  const int64_t blocks = g.k > 0 ? ceil_div(g.k, kBlockK) : 1;
  const int64_t longest = smaller(g.k, kBlockK);

  // Scratch: the sums of all tiles (of one when k is a single block), one panel of B, the block of A.
  const int64_t tiles = tile1 - tile0, panels = panel1 - panel0;
  const int64_t sums_numel = (blocks > 1 ? tiles * panels : 1) * kTileRows * kCols;
  const int64_t a_numel = pack_a ? tiles * kTileRows * longest : 0;
  const int64_t b_numel = packed ? 0 : kCols * longest;
  const auto bytes = (sums_numel + a_numel) * sizeof(C) + b_numel * sizeof(S);
  C* const sums = static_cast<C*>(thread_scratch(bytes));
  S* const b_panel = reinterpret_cast<S*>(sums + sums_numel);
  C* const a_block = reinterpret_cast<C*>(b_panel + b_numel);

  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t k0 = block * kBlockK, kc = smaller(kBlockK, g.k - k0);
    const bool last = block == blocks - 1;
    Operand<C> a;
    if constexpr (std::is_same_v<S, C>) a = {g.a.at(row0, k0), g.a.stride, 1};
    if (g.gather_a)
      a = g.gather_a(row0, row1 - row0, k0, kc, a_block);
    else if (pack_a)
      a = pack_rows(g.a, row0, row1 - row0, k0, kc, a_block);
    const int64_t tile_step = pack_a ? kTileRows * kc : kTileRows * a.stride;

    for (int64_t p = 0; p < panels; ++p) {
      const int64_t panel = panel0 + p;
      const int64_t valid = smaller(kCols, skip + g.n - panel * kCols);
      const S* const b = packed ? packed + (panel * g.k + k0) * kCols : b_panel;
      if (g.gather_b)
        g.gather_b(panel * kCols, valid, k0, kc, b_panel);
      else if (!packed)
        pack_panel(g.b, panel * kCols, valid, k0, kc, b_panel);
      // Packed B comes from memory while the panel before it is worked on: each tile fetches a part.
      const S* next = nullptr;
      if (packed && p + 1 < panels)
        next = b + g.k * kCols;
      else if (packed && !last)
        next = packed + (panel0 * g.k + k0 + kc) * kCols;
      const int64_t next_bytes = next ? kc * kCols * static_cast<int64_t>(sizeof(S)) : 0;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t row = row0 + t * kTileRows, rows = smaller(kTileRows, row1 - row);
        C* const tile = sums + (blocks > 1 ? p * tiles + t : 0) * kTileRows * kCols;
        const int64_t fetched = t * kc * kAheadBytes;
        const void* const ahead = fetched < next_bytes ? reinterpret_cast<const char*>(next) + fetched
                                                       : static_cast<const void*>(b);
        micro_kernel_for<S>(rows, valid)(kc, {a.data + t * tile_step, a.stride, a.k_stride}, b, kCols, tile,
                                         kCols, block > 0, ahead);
        if (!last) continue;
        const int64_t from = panel == 0 ? skip : 0;
        epilogue({tile + from, row, rows, panel * kCols + from - skip, valid - from});
      }
    }
  }
}

template <class S>
void gemm(const Gemm<S>& g, const Epilogue<compute_t<S>>& epilogue) {
  if (g.m == 0 || g.n == 0) return;
  constexpr int64_t kCols = kTileCols<compute_t<S>>;
  const int64_t skip = g.packed ? g.first % kCols : 0;
  const int64_t tiles = ceil_div(g.m, kTileRows), panels = ceil_div(skip + g.n, kCols);
  const int threads = g.m * g.n * g.k < kSerialWork ? 1 : max_threads();
  const JobGrid grid = choose_grid(tiles, panels, kJobRows / kTileRows, kJobCols / kCols, threads,
                                   g.gather_a || !readable_in_place(g.a), !g.packed);
  parallel_for(grid.rows * grid.cols, threads == 1 ? grid.rows * grid.cols : 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t job = begin; job < end; ++job) {
                   const int64_t r = job % grid.rows, c = job / grid.rows;
                   run_job(g, epilogue, tiles * r / grid.rows, tiles * (r + 1) / grid.rows,
                           panels * c / grid.cols, panels * (c + 1) / grid.cols);
                 }
               });
}

}  // namespace va::VA_ISA
