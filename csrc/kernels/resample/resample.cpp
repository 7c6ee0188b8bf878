// SPDX-License-Identifier: Apache-2.0
#include "kernels/resample/resample.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"

namespace va {
namespace {

constexpr int kPrecisionBits = 22;
constexpr int64_t kMaxSide = int64_t{1} << 24;
constexpr int64_t kTileBytes = 256 * 1024;      // transposed source of one sweep: stays in the L2 cache
constexpr int64_t kPartWork = 2 * 1000 * 1000;  // multiply-adds that are worth a thread

double support_of(Filter f) {
  switch (f) {
    case Filter::nearest:
    case Filter::box:
      return 0.5;
    case Filter::lanczos:
      return 3.0;
    case Filter::bicubic:
      return 2.0;
    default:
      return 1.0;
  }
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= M_PI;
  return std::sin(x) / x;
}

// The filters as Pillow defines them: bicubic is Keys' kernel with a = -1/2, and hamming's constants are
// single precision.
double filter_value(Filter f, double x) {
  const double d = std::fabs(x);
  switch (f) {
    case Filter::box:
      return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case Filter::bilinear:
      return d < 1.0 ? 1.0 - d : 0.0;
    case Filter::hamming:
      if (d == 0.0) return 1.0;
      return d < 1.0 ? sinc(d) * (0.54f + 0.46f * std::cos(d * M_PI)) : 0.0;
    case Filter::bicubic:
      if (d < 1.0) return (1.5 * d - 2.5) * d * d + 1.0;
      return d < 2.0 ? (((d - 5.0) * d + 8.0) * d - 4.0) * -0.5 : 0.0;
    case Filter::lanczos:
      return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
    default:
      return 0.0;
  }
}

// One axis of the call: `source` pixels, of which [begin, end) become `resized`; `count` are wanted, from
// `offset`.
struct AxisArgs {
  Filter filter;
  int64_t source;
  float begin, end;
  int64_t resized, offset, count;
  bool reversed;
};

// Pillow copies an axis that keeps its size.
bool is_identity(const AxisArgs& a) {
  return a.resized == a.source && a.begin == 0 && a.end == static_cast<float>(a.source);
}

// The difference of the coordinates is taken in single precision, as in Pillow.
double scale_of(const AxisArgs& a) {
  return static_cast<double>(a.end - a.begin) / static_cast<double>(a.resized);
}

ResampleAxis measure(const AxisArgs& a) {
  ResampleAxis axis{};
  axis.count = a.count;
  axis.scale = scale_of(a);
  axis.support = support_of(a.filter) * std::max(axis.scale, 1.0);
  const bool single = is_identity(a) || a.filter == Filter::nearest;
  const int64_t taps = single ? 1 : std::min(a.source, static_cast<int64_t>(std::ceil(axis.support)) * 2 + 1);
  axis.max_pairs = (taps + 1) / 2;
  return axis;
}

// Weights are zero before.
void set_weight(ResampleAxis& axis, int64_t position, int64_t tap, int32_t weight) {
  int32_t* const pair = axis.weights + (position * axis.max_pairs + tap / 2) * 2;
  const int16_t low = static_cast<int16_t>(weight & 0xffff);
  const int16_t high = static_cast<int16_t>((weight - low) >> 16);
  const int shift = tap % 2 ? 16 : 0;
  pair[0] |= static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(low)) << shift);
  pair[1] |= static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint16_t>(high)) << shift);
}

void fill_single(ResampleAxis& axis, const AxisArgs& a) {
  const bool identity = is_identity(a);
  const double step = axis.scale;
  double position = a.begin + step * 0.5;  // accumulated, as in Pillow
  for (int64_t i = 0; i < a.offset + a.count; ++i, position += step) {
    if (i < a.offset) continue;
    const int64_t at = a.reversed ? a.count - 1 - (i - a.offset) : i - a.offset;
    const int64_t source = identity ? i : static_cast<int64_t>(position);
    const bool inside = source < a.source;  // rounding may step over the end: Pillow leaves that pixel 0
    axis.first[at] = static_cast<int32_t>(inside ? source : a.source - 1);
    axis.taps[at] = 1;
    set_weight(axis, at, 0, inside ? 1 << kPrecisionBits : 0);
  }
}

void fill(ResampleAxis& axis, const AxisArgs& a, double* values) {
  std::memset(axis.weights, 0, static_cast<size_t>(axis.count * axis.max_pairs) * 2 * sizeof(int32_t));
  if (is_identity(a) || a.filter == Filter::nearest) return fill_single(axis, a);
  const double inverse = 1.0 / std::max(axis.scale, 1.0);
  for (int64_t i = 0; i < a.count; ++i) {
    const double centre = a.begin + (static_cast<double>(a.offset + i) + 0.5) * axis.scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - axis.support + 0.5));
    const int64_t last = std::min(a.source, static_cast<int64_t>(centre + axis.support + 0.5));
    const int64_t n = std::min(std::max<int64_t>(0, last - first), axis.max_pairs * 2);
    double total = 0.0;
    for (int64_t t = 0; t < n; ++t) {
      values[t] = filter_value(a.filter, (static_cast<double>(t + first) - centre + 0.5) * inverse);
      total += values[t];
    }
    const int64_t at = a.reversed ? a.count - 1 - i : i;
    axis.first[at] = static_cast<int32_t>(std::min(first, a.source - 1));
    axis.taps[at] = static_cast<int32_t>(n);
    for (int64_t t = 0; t < n; ++t) {
      const double k = (total != 0.0 ? values[t] / total : values[t]) * (1 << kPrecisionBits);
      set_weight(axis, at, t, static_cast<int32_t>(k < 0 ? k - 0.5 : k + 0.5));
    }
  }
}

// Hands out the workspace piece by piece; with a null base it only measures.
class Arena {
 public:
  explicit Arena(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(int64_t n) {
    T* const p = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base_) + static_cast<uintptr_t>(used_));
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Call {
  AxisArgs x, y;
  ResamplePlan plan;
  int64_t table_bytes;  // of the weights, at the start of the workspace
  int64_t bytes;
};

Call make_call(const Resample& a, uint8_t* memory) {
  const auto [h, w, c] = a.image.shape<3>("resample: image");
  const auto out = a.out.shape<3>("resample: out");
  const int64_t channels = a.planar ? out[0] : out[2];
  const int64_t rows = a.planar ? out[1] : out[0], columns = a.planar ? out[2] : out[1];
  Call call{{a.filter, w, a.box[0], a.box[2], a.width, a.left, columns, a.flip},
            {a.filter, h, a.box[1], a.box[3], a.height, a.top, rows, false},
            {},
            0,
            0};
  ResamplePlan& p = call.plan;
  p.x = measure(call.x);
  p.y = measure(call.y);
  p.planes = a.planar ? channels : 1;
  p.inner = a.planar ? columns : columns * channels;
  p.plane_pitch = round_up(columns, 16) * (a.planar ? 1 : channels);
  p.plane_pitch = round_up(p.plane_pitch, 32);
  p.pitch = p.planes * p.plane_pitch;

  p.pixel = w == 1 ? c : a.image.strides[1];
  const double reach = 2 * p.x.support + 2;
  const auto span_of = [](const ResampleAxis& axis, int64_t n, int64_t source) {
    const double pixels = static_cast<double>(n - 1) * axis.scale + 2 * axis.support + 2;
    return static_cast<int64_t>(std::min(static_cast<double>(source), std::ceil(pixels)));
  };
  const auto span = [&](int64_t n) { return span_of(p.x, n, w); };  // source columns of n columns, at most
  p.pass_bytes = channels * (a.vertical_first ? rows * span(columns) : span_of(p.y, rows, h) * columns);
  const double room = static_cast<double>(kTileBytes / (ResamplePlan::kRows * p.pixel)) - reach;
  const double fitting = std::clamp(room / p.x.scale, 16.0, static_cast<double>(columns + 16));
  p.chunk = std::min(static_cast<int64_t>(fitting) / 16 * 16, round_up(columns, 16));
  p.tile_bytes = round_up(span(p.chunk) * p.pixel, 16) * ResamplePlan::kRows;
  p.band_rows = a.vertical_first ? ResamplePlan::kRows : 2 * p.y.max_pairs + 2 * ResamplePlan::kRows;
  p.band_pitch = a.vertical_first ? round_up(span(columns) * p.pixel, 32) : p.pitch;

  // The source rows behind the output, times the columns and taps of each pass.
  const double source_rows = std::min(static_cast<double>(h), static_cast<double>(rows) * p.y.scale);
  const double work =
      2.0 * static_cast<double>(columns * channels) *
      (source_rows * static_cast<double>(p.x.max_pairs) + static_cast<double>(rows * p.y.max_pairs));
  const int64_t threads = a.threads > 0 ? a.threads : max_threads();
  p.parts =
      std::max<int64_t>(1, std::min({threads, (rows + 15) / 16, static_cast<int64_t>(work / kPartWork)}));

  Arena arena(memory);
  for (ResampleAxis* axis : {&p.x, &p.y}) {
    axis->first = arena.take<int32_t>(axis->count);
    axis->taps = arena.take<int32_t>(axis->count);
    axis->weights = arena.take<int32_t>(axis->count * axis->max_pairs * 2);
  }
  p.values = arena.take<double>(2 * std::max(p.x.max_pairs, p.y.max_pairs));
  call.table_bytes = arena.used();
  const int64_t lines = a.vertical_first ? ResamplePlan::kRows : 1;  // finished rows
  p.part_bytes = round_up(lines * p.pitch + p.band_rows * p.band_pitch + p.tile_bytes, 64);
  p.part_memory = arena.take<uint8_t>(p.parts * p.part_bytes);
  call.bytes = arena.used();
  return call;
}

void check_axis(const char* name, int64_t size, int64_t offset, int64_t count) {
  const std::string axis = name;
  if (size < 1 || size > kMaxSide)
    fail("resample: " + axis + " must be in [1, " + std::to_string(kMaxSide) + "], got " +
         std::to_string(size));
  if (offset < 0 || count < 0 || offset > size - count)
    fail("resample: the crop of the " + axis + " must lie within [0, " + std::to_string(size) + "], got [" +
         std::to_string(offset) + ", " + std::to_string(offset + count) + "]");
}

void check_box(const float* box, int64_t h, int64_t w) {
  const bool inside =
      box[0] >= 0 && box[1] >= 0 && box[2] <= static_cast<float>(w) && box[3] <= static_cast<float>(h);
  if (inside && box[2] > box[0] && box[3] > box[1]) return;
  std::string got;
  for (int i = 0; i < 4; ++i) got += (i ? ", " : "") + std::to_string(box[i]);
  fail("resample: box (left, top, right, bottom) must be a non-empty part of the image [" +
       std::to_string(h) + ", " + std::to_string(w) + "], got (" + got + ")");
}

void check_arguments(const Resample& a) {
  const auto [h, w, c] = a.image.shape<3>("resample: image");
  check_dtype(a.image, "resample: image", {DType::u8});
  if (h < 1 || w < 1 || h > kMaxSide || w > kMaxSide || c < 1 || c > 4)
    fail("resample: image must be [h, w, 1 to 4] with pixels in it, got " + shape_string(a.image));
  check(c == 1 || a.image.strides[2] == 1, "resample: the channels of a pixel must be adjacent");
  check(w == 1 || (a.image.strides[1] >= c && a.image.strides[1] <= 4),
        "resample: the pixels of a row must be C to 4 bytes apart");
  check(static_cast<int>(a.filter) >= 0 && static_cast<int>(a.filter) <= 5,
        "resample: unknown interpolation");
  check_box(a.box, h, w);

  const auto out = a.out.shape<3>("resample: out");
  check_dtype(a.out, "resample: out", {DType::u8, DType::f32});
  check_device(a.out, "resample: out", a.image);
  const int64_t channels = a.planar ? out[0] : out[2];
  check(channels >= 1 && channels <= c, "resample: out cannot have more channels than the image");
  check_axis("height", a.height, a.top, a.planar ? out[1] : out[0]);
  check_axis("width", a.width, a.left, a.planar ? out[2] : out[1]);
  check(a.out.strides[2] == 1 || out[2] <= 1, "resample: the last axis of out must be contiguous");
  check(a.planar || a.out.strides[1] == channels || out[1] <= 1,
        "resample: the rows of out must be contiguous");
  if (a.out.dtype == DType::f32) {
    check_shape(a.table, "resample: table", {channels, 256});
    check_dtype(a.table, "resample: table", {DType::f32});
    check_device(a.table, "resample: table", a.image);
    check_contiguous(a.table, "resample: table");
  }
}

// Fills the tables and what follows from them.
void fill(Call& call) {
  ResamplePlan& p = call.plan;
  fill(p.x, call.x, p.values);
  fill(p.y, call.y, p.values);
  p.begin = p.x.first[0];
  p.end = p.begin;
  for (int64_t i : {int64_t{0}, p.x.count - 1}) {  // a mirrored axis runs backwards
    p.begin = std::min<int64_t>(p.begin, p.x.first[i]);
    p.end = std::max<int64_t>(p.end, p.x.first[i] + p.x.taps[i]);
  }
}

}  // namespace

int64_t resample_workspace(const Resample& a) {
  check_arguments(a);
  const Call call = make_call(a, nullptr);
  return runs_on_gpu(a.image.device) ? call.table_bytes + call.plan.pass_bytes : call.bytes;
}

void resample(const Resample& a, Stream stream) {
  check_arguments(a);
  Call call = make_call(a, a.workspace.ptr<uint8_t>());
  if (a.out.numel() == 0) return;
  check_dtype(a.workspace, "resample: workspace", {DType::u8});
  check_device(a.workspace, "resample: workspace", a.image);
  check_contiguous(a.workspace, "resample: workspace");
  dispatch_device(
      a.image.device, "resample",
      [&](auto isa) {
        // The number of threads may have changed since the workspace was measured: use what there is.
        ResamplePlan& p = call.plan;
        const int64_t fixed = call.bytes - round_up(p.parts * p.part_bytes, 64);
        p.parts = std::min(p.parts, (a.workspace.numel() - fixed) / p.part_bytes);
        check(p.parts >= 1, "resample: workspace is too small");
        fill(call);
        cpu::resample<isa()>(a, p);
      },
      [&] {
        check(a.workspace.numel() >= call.table_bytes + call.plan.pass_bytes,
              "resample: workspace is too small");
        // The weights come from the host's arithmetic, or they would not be Pillow's to the last bit.
        std::vector<double> memory(static_cast<size_t>(call.table_bytes) / sizeof(double));
        auto* const tables = reinterpret_cast<uint8_t*>(memory.data());
        Call filled = make_call(a, tables);
        fill(filled);
        cuda::resample(a, filled.plan, tables, call.table_bytes, stream);
      });
}

}  // namespace va
