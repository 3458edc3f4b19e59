#include "kernels/conv3d/planner.h"

#include <algorithm>

#include "isa/bfloat16.h"

namespace volnet::conv3d {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tap_count(const std::array<Axis, 3>& axes) {
  int64_t count = 1;
  for (const Axis& axis : axes) count *= static_cast<int64_t>(axis.taps.size());
  return count;
}

// From the first tap to the last, in voxels.
int64_t reach(const Axis& axis) {
  return axis.taps.empty() ? 0 : axis.taps.back().offset - axis.taps.front().offset;
}

// Whether y is so large that the caches lose it before it is read again; then reading the lines it overwrites
// only costs. Only whole vectors can be written past the caches.
bool worth_streaming(const Convolution& call, int64_t vector, int64_t element_size) {
  constexpr int64_t large = int64_t{16} << 20;
  int64_t voxels = call.batch;
  for (const Axis& axis : call.axes) voxels *= axis.output;
  return call.groups * call.filters % vector == 0 && call.axes[2].write_step == 1 &&
         voxels * call.groups * call.filters * element_size >= large;
}

// The same for a plain y, whose rows must begin with a cache line.
bool worth_streaming_rows(const Convolution& call, int64_t vector, int64_t element_size) {
  return vector * element_size == 64 && call.axes[2].output % vector == 0 && call.axes[2].write_first == 0 &&
         worth_streaming(call, 1, element_size);
}

// Enough pieces for 112 cores to stay evenly busy, as far as there are that many rows.
constexpr int64_t wanted_pieces = 4 * 112;

int64_t rows_a_piece(int64_t rows, int64_t other_pieces) {
  const int64_t chunks = std::clamp<int64_t>(ceil_div(wanted_pieces, std::max<int64_t>(other_pieces, 1)), 1,
                                             std::max<int64_t>(rows, 1));
  const int64_t most = std::max<int64_t>(ceil_div(rows, chunks), 1);
  return most > 1 && ceil_div(rows, most) < chunks ? most - 1 : most;
}

}  // namespace

bool is_pointwise(const Convolution& call) {
  return std::all_of(call.axes.begin(), call.axes.end(), [](const Axis& axis) {
    return axis.taps.size() == 1 && axis.taps[0].offset == 0 && axis.stride == 1 && axis.write_step == 1 &&
           axis.count == axis.input && axis.count == axis.output;
  });
}

void merge_axes(Convolution& call, int64_t voxels) {
  auto& [depth, height, width] = call.axes;
  int64_t rows = depth.count * height.count, joined = 1;
  while (joined < rows && (width.count * joined < voxels || rows % joined != 0)) ++joined;
  const auto set = [](Axis& axis, int64_t count) { axis.input = axis.output = axis.count = count; };
  set(width, width.count * joined);
  set(height, rows / joined);
  set(depth, 1);
}

Axis forward_axis(const AxisArguments& a) {
  Axis axis;
  axis.input = a.input;
  axis.output = axis.count = a.output();
  axis.stride = a.stride;
  for (int64_t t = 0; t < a.kernel; ++t) axis.taps.push_back({t * a.dilation - a.padding_begin, t});
  return axis;
}

std::vector<Axis> data_gradient_axes(const AxisArguments& a) {
  std::vector<Axis> axes;
  for (int64_t residue = 0; residue < std::min(a.stride, a.input); ++residue) {
    Axis axis;
    axis.input = a.output();
    axis.output = a.input;
    axis.count = ceil_div(a.input - residue, a.stride);
    axis.write_first = residue;
    axis.write_step = a.stride;
    for (int64_t t = a.kernel - 1; t >= 0; --t) {
      const int64_t position = residue + a.padding_begin - t * a.dilation;
      if (position % a.stride == 0) axis.taps.push_back({position / a.stride, t});
    }
    axes.push_back(axis);
  }
  return axes;
}

void plan(const DirectKernel& kernel, int64_t element_size, Convolution& call) {
  if (is_pointwise(call)) merge_axes(call, 256);
  const auto& [depth, height, width] = call.axes;
  call.k_block = call.filters <= kernel.width ? kernel.width : 2 * kernel.width;
  call.row_tile = kernel.row_tile;
  call.form = call.channels <= 4 ? Form::small_channels : Form::rows;
  const int64_t blocks = ceil_div(call.filters, call.k_block);
  int64_t shares = 1;  // pieces that compute the same voxels
  if (call.form == Form::rows) {
    const int64_t block_bytes = tap_count(call.axes) * call.channels * call.k_block * element_size;
    const int64_t cached = std::max<int64_t>((int64_t{512} << 10) / std::max<int64_t>(block_bytes, 1), 1);
    const int64_t rows = std::max<int64_t>(call.batch * call.groups * depth.count * height.count, 1);
    shares = std::min(std::max(ceil_div(blocks, cached), ceil_div(wanted_pieces, rows)), blocks);
  }
  call.blocks = ceil_div(blocks, shares);
  const int64_t outer = call.batch * call.groups * ceil_div(blocks, call.blocks) * depth.count;
  call.rows = rows_a_piece(height.count, outer);
  call.pieces = outer * ceil_div(height.count, call.rows);
  call.epilogue.slots = depth.count * ceil_div(height.count, call.rows);
  call.stream = call.plain_y ? worth_streaming_rows(call, kernel.width, element_size)
                             : worth_streaming(call, call.k_block, element_size);

  const auto row_taps = static_cast<int64_t>(depth.taps.size() * height.taps.size());
  if (call.form == Form::small_channels) {
    const int64_t input_rows = (call.rows - 1) * height.stride + reach(height) + 1;
    const int64_t voxels = (width.count - 1) * width.stride + reach(width) + 1;
    const auto taps = row_taps * static_cast<int64_t>(width.taps.size());
    const int64_t overhang = 3 * kernel.width * element_size;  // read behind the last row
    call.scratch = (taps * static_cast<int64_t>(sizeof(int64_t)) +
                    static_cast<int64_t>(depth.taps.size()) * input_rows * voxels * element_size) *
                       call.channels +
                   overhang;
  } else {
    const int64_t segment = ((kernel.row_tile - 1) * width.stride + reach(width) + 1) * call.channels;
    call.scratch = row_taps * (static_cast<int64_t>(sizeof(TapRow)) + segment * element_size) +
                   call.channels * element_size;
  }
}

void plan_depthwise(const DirectKernel& kernel, Convolution& call) {
  const auto& [depth, height, width] = call.axes;
  call.k_block = kernel.width;
  call.rows = rows_a_piece(height.count, call.batch * depth.count);
  const auto row_taps = static_cast<int64_t>(depth.taps.size() * height.taps.size());
  const size_t taps = width.taps.size();
  if (width.stride <= 2 && (taps == 3 || taps == 5 || taps == 7) &&
      width.taps[1].offset - width.taps[0].offset == 1) {
    call.form = Form::sliding;
    call.rows = std::max<int64_t>(call.rows - call.rows % 2, 2);  // it computes two rows at once
    const auto pairs = ceil_div(call.rows, 2);
    call.scratch = pairs * static_cast<int64_t>(sizeof(int64_t)) +
                   pairs * row_taps * 2 * 3 * static_cast<int64_t>(sizeof(void*));
  } else {
    call.form = Form::rows;
    call.scratch = row_taps * static_cast<int64_t>(sizeof(TapRow));
  }
  call.stream = call.form == Form::sliding && worth_streaming(call, call.k_block, sizeof(float));
  call.epilogue.slots = depth.count * ceil_div(height.count, call.rows);
  call.pieces = call.batch * call.epilogue.slots;
}

bool direct_serves_plain(const Convolution& call) {
  return call.groups == 1 && call.channels == 1 && call.axes[2].stride == 1 && call.axes[2].write_step == 1 &&
         call.epilogue.empty() && !call.loads_inputs;
}

double direct_cost(const Convolution& call) {
  constexpr double efficiency = 0.9;  // measured, of the multiply-adds on whole blocks of filters
  const int64_t padded = is_depthwise(call) ? 1 : ceil_div(call.filters, call.k_block) * call.k_block;
  double work = static_cast<double>(call.batch * call.groups * call.channels * padded) / efficiency;
  for (const Axis& axis : call.axes) work *= static_cast<double>(axis.count * axis.taps.size());
  return work;
}

void plan(const GradientKernel& kernel, int64_t element_size, WeightGradient& call) {
  const auto& [depth, height, width] = call.axes;
  call.k_block = call.filters <= kernel.width || call.depthwise ? kernel.width : 2 * kernel.width;
  const int64_t blocks = ceil_div(call.filters, call.k_block);
  call.k_padded = blocks * call.k_block;
  call.form = call.channels <= 4 ? Form::small_channels : Form::rows;
  // Rows are summed in registers until loading and storing the sums costs little beside it, and x and dy are
  // still in the cache for the next taps.
  call.rows = std::clamp<int64_t>(ceil_div(256, std::max<int64_t>(width.count, 1)), 1, 64);
  call.units = call.batch * depth.count * ceil_div(height.count, call.rows);

  const int64_t taps = tap_count(call.axes), tap_planes = static_cast<int64_t>(depth.taps.size());
  // Partial sums of every range are kept until they are added up: at most 16 MiB of them, and few where they
  // are large.
  const int64_t partial = call.groups * (taps * call.channels + 1) * call.k_padded * element_size;
  const bool together = call.form == Form::rows && partial <= (int64_t{128} << 10);
  call.blocks = together ? blocks : 1;
  const int64_t shares = (together ? 1 : blocks) * call.groups *
                         (call.form == Form::rows ? std::max<int64_t>(tap_planes, 1) : 1);
  const int64_t affordable = std::max<int64_t>((int64_t{16} << 20) / std::max<int64_t>(partial, 1), 1);
  call.ranges = std::clamp<int64_t>(std::min(ceil_div(wanted_pieces, shares), affordable), 1,
                                    std::max<int64_t>(call.units, 1));
  call.pieces = call.ranges * shares;

  if (call.form == Form::small_channels && !call.depthwise) {
    const int64_t rows = (call.rows - 1) * height.stride + reach(height) + 1;
    const int64_t voxels = (width.count - 1) * width.stride + reach(width) + 1;
    call.scratch =
        (taps * static_cast<int64_t>(sizeof(int64_t)) + tap_planes * rows * voxels * element_size) *
        call.channels;
  }
}

int64_t packed_size(const Convolution& call) {
  const int64_t blocks = ceil_div(call.filters, call.k_block);
  return call.groups * blocks * tap_count(call.axes) * call.channels * call.k_block;
}

int64_t packed_depthwise_size(const Convolution& call) {
  return tap_count(call.axes) * ceil_div(call.groups, call.k_block) * call.k_block;
}

int64_t packing_pieces(const Convolution& call) {
  return call.groups * ceil_div(call.filters, call.k_block) * static_cast<int64_t>(call.axes[0].taps.size());
}

template <class A, class S>
void pack_weights(const S* w, const WeightStrides& strides, const Convolution& call, int64_t piece,
                  A* packed) {
  const auto& [depth, height, width] = call.axes;
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t blocks = ceil_div(call.filters, call.k_block);
  const int64_t block = piece / taps_d % blocks, group = piece / taps_d / blocks;
  const Tap& tap_d = depth.taps[static_cast<size_t>(piece % taps_d)];
  A* to = packed +
          piece * static_cast<int64_t>(height.taps.size() * width.taps.size()) * call.channels * call.k_block;
  for (const Tap& tap_h : height.taps) {
    for (const Tap& tap_w : width.taps) {
      const S* from = w + group * strides.group + block * call.k_block * strides.filter +
                      tap_d.index * strides.taps[0] + tap_h.index * strides.taps[1] +
                      tap_w.index * strides.taps[2];
      for (int64_t c = 0; c < call.channels; ++c) {
        for (int64_t k = 0; k < call.k_block; ++k) {
          const bool inside = block * call.k_block + k < call.filters;
          *to++ = inside ? static_cast<A>(to_float(from[k * strides.filter + c * strides.channel])) : A{0};
        }
      }
    }
  }
}

template <class A, class S>
void pack_depthwise_weights(const S* w, const WeightStrides& strides, const Convolution& call, A* packed) {
  const auto& [depth, height, width] = call.axes;
  const int64_t padded = ceil_div(call.groups, call.k_block) * call.k_block;
  for (const Tap& tap_d : depth.taps) {
    for (const Tap& tap_h : height.taps) {
      for (const Tap& tap_w : width.taps) {
        const S* from =
            w + tap_d.index * strides.taps[0] + tap_h.index * strides.taps[1] + tap_w.index * strides.taps[2];
        for (int64_t g = 0; g < padded; ++g) {
          *packed++ = g < call.groups ? static_cast<A>(to_float(from[g * strides.group])) : A{0};
        }
      }
    }
  }
}

template void pack_weights(const float*, const WeightStrides&, const Convolution&, int64_t, float*);
template void pack_weights(const bfloat16*, const WeightStrides&, const Convolution&, int64_t, float*);
template void pack_weights(const double*, const WeightStrides&, const Convolution&, int64_t, double*);
template void pack_depthwise_weights(const float*, const WeightStrides&, const Convolution&, float*);
template void pack_depthwise_weights(const bfloat16*, const WeightStrides&, const Convolution&, float*);
template void pack_depthwise_weights(const double*, const WeightStrides&, const Convolution&, double*);

}  // namespace volnet::conv3d
