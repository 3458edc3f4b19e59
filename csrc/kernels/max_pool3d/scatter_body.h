// The scatter and sparse kernels: scattered places, the same source for every level. Included inside the
// level's namespace, once.

// sums: the slab's first element; pitch: from one voxel of it to the next.
template <class Index, class A, class T>
inline void scatter(const BackwardParams& p, const Slab& slab, A* sums, int64_t pitch) {
  const int64_t slice = p.h.in * p.w.in, channels = slab.c_end - slab.c_begin;
  const int64_t size = (slab.d_end - slab.d_begin) * slice;
  if (pitch == channels) {
    std::fill_n(sums, size * channels, A{});
  } else {
    for (int64_t voxel = 0; voxel < size; ++voxel) std::fill_n(sums + voxel * pitch, channels, A{});
  }

  const pooling::Range od = pooling::outputs_touching(p.d, slab.d_begin, slab.d_end);
  const int64_t first = slab.d_begin * slice;
  const int64_t begin = (slab.plane * p.d.out + od.begin) * p.h.out * p.w.out;
  const int64_t end = (slab.plane * p.d.out + od.end) * p.h.out * p.w.out;
  // Indices of other slabs, and -1, become places beyond the slab.
  const auto inside = static_cast<uint64_t>(size);
  const auto* all_indices = static_cast<const Index*>(p.indices);
  if (p.channels == 1) {
    const T* dy = static_cast<const T*>(p.dy);
    for (int64_t voxel = begin; voxel < end; ++voxel) {
      const auto place = static_cast<uint64_t>(all_indices[voxel] - first);
      if (place < inside) sums[place] = from_float<A>(to_float(sums[place]) + to_float(dy[voxel]));
    }
    return;
  }
  for (int64_t voxel = begin; voxel < end; ++voxel) {
    const T* dy = static_cast<const T*>(p.dy) + voxel * p.channels + slab.c_begin;
    const Index* indices = all_indices + voxel * p.channels + slab.c_begin;
    for (int64_t c = 0; c < channels; ++c) {
      const auto place = static_cast<uint64_t>(indices[c] - first);
      if (place >= inside) continue;
      A& sum = sums[static_cast<int64_t>(place) * pitch + c];
      sum = from_float<A>(to_float(sum) + to_float(dy[c]));
    }
  }
}

template <class Index, class T>
void scatter_slab(const BackwardParams& p, const Slab& slab, float* scratch) {
  const int64_t slice = p.h.in * p.w.in, channels = slab.c_end - slab.c_begin;
  T* dx = static_cast<T*>(p.dx) + (slab.plane * p.d.in + slab.d_begin) * slice * p.channels + slab.c_begin;
  if (scratch == nullptr) {
    scatter<Index, T, T>(p, slab, dx, p.channels);
    return;
  }
  scatter<Index, float, T>(p, slab, scratch, channels);
  for (int64_t voxel = 0; voxel < (slab.d_end - slab.d_begin) * slice; ++voxel) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[voxel * p.channels + c] = from_float<T>(scratch[voxel * channels + c]);
    }
  }
}

template <class T>
void backward_scatter(const BackwardParams& p, const Slab& slab, float* scratch) {
  if (p.narrow) {
    scatter_slab<int32_t, T>(p, slab, scratch);
  } else {
    scatter_slab<int64_t, T>(p, slab, scratch);
  }
}

// The sum of what the windows bring that name dx[place] of a plane and channel; `own` is one of them. Returns
// whether it is the first: who writes the sum.
template <class Index, class T>
inline bool sum_at(const BackwardParams& p, const T* dy, const Index* indices, int64_t place, int64_t own,
                   compute_t<T>& sum) {
  using pooling::outputs_touching;
  const int64_t d = place / (p.h.in * p.w.in), h = place / p.w.in % p.h.in, w = place % p.w.in;
  const pooling::Range od = outputs_touching(p.d, d, d + 1), oh = outputs_touching(p.h, h, h + 1);
  const pooling::Range ow = outputs_touching(p.w, w, w + 1);
  sum = 0;
  for (int64_t i = od.begin; i < od.end; ++i) {
    for (int64_t j = oh.begin; j < oh.end; ++j) {
      for (int64_t k = ow.begin; k < ow.end; ++k) {
        const int64_t o = (i * p.h.out + j) * p.w.out + k;
        if (indices[o * p.channels] != place) continue;
        if (o < own) return false;
        sum += to_float(dy[o * p.channels]);
      }
    }
  }
  return true;
}

template <class Index, class T>
void write_sums(const BackwardParams& p, int64_t begin, int64_t end) {
  const int64_t outputs = p.d.out * p.h.out * p.w.out, voxels = p.d.in * p.h.in * p.w.in;
  for (int64_t voxel = begin; voxel < end; ++voxel) {
    const int64_t plane = voxel / outputs, own = voxel % outputs;
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t offset = plane * outputs * p.channels + c;
      const Index* indices = static_cast<const Index*>(p.indices) + offset;
      const auto place = static_cast<int64_t>(indices[own * p.channels]);
      if (place < 0 || place >= voxels) continue;
      compute_t<T> sum;
      if (sum_at(p, static_cast<const T*>(p.dy) + offset, indices, place, own, sum)) {
        static_cast<T*>(p.dx)[(plane * voxels + place) * p.channels + c] = from_float<T>(sum);
      }
    }
  }
}

template <class T>
void backward_sparse(const BackwardParams& p, int64_t begin, int64_t end) {
  if (p.narrow) {
    write_sums<int32_t, T>(p, begin, end);
  } else {
    write_sums<int64_t, T>(p, begin, end);
  }
}

void backward_sparse_f32(const BackwardParams& p, int64_t begin, int64_t end) {
  backward_sparse<float>(p, begin, end);
}
void backward_sparse_bf16(const BackwardParams& p, int64_t begin, int64_t end) {
  backward_sparse<bfloat16>(p, begin, end);
}
void backward_scatter_f32(const BackwardParams& p, const Slab& slab, float* scratch) {
  backward_scatter<float>(p, slab, scratch);
}
void backward_scatter_bf16(const BackwardParams& p, const Slab& slab, float* scratch) {
  backward_scatter<bfloat16>(p, slab, scratch);
}
