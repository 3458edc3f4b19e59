// The scatter kernels: additions to scattered places, the same source for every level. Included inside the
// level's namespace, once.

// sums: the slab's first element; pitch: from one voxel of it to the next.
template <class A, class T>
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
  if (p.channels == 1) {
    const T* dy = static_cast<const T*>(p.dy);
    for (int64_t voxel = begin; voxel < end; ++voxel) {
      const auto place = static_cast<uint64_t>(p.indices[voxel] - first);
      if (place < inside) sums[place] = from_float<A>(to_float(sums[place]) + to_float(dy[voxel]));
    }
    return;
  }
  for (int64_t voxel = begin; voxel < end; ++voxel) {
    const T* dy = static_cast<const T*>(p.dy) + voxel * p.channels + slab.c_begin;
    const int64_t* indices = p.indices + voxel * p.channels + slab.c_begin;
    for (int64_t c = 0; c < channels; ++c) {
      const auto place = static_cast<uint64_t>(indices[c] - first);
      if (place >= inside) continue;
      A& sum = sums[static_cast<int64_t>(place) * pitch + c];
      sum = from_float<A>(to_float(sum) + to_float(dy[c]));
    }
  }
}

template <class T>
void backward_scatter(const BackwardParams& p, const Slab& slab, float* scratch) {
  const int64_t slice = p.h.in * p.w.in, channels = slab.c_end - slab.c_begin;
  T* dx = static_cast<T*>(p.dx) + (slab.plane * p.d.in + slab.d_begin) * slice * p.channels + slab.c_begin;
  if (scratch == nullptr) {
    scatter<T, T>(p, slab, dx, p.channels);
    return;
  }
  scatter<float, T>(p, slab, scratch, channels);
  for (int64_t voxel = 0; voxel < (slab.d_end - slab.d_begin) * slice; ++voxel) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[voxel * p.channels + c] = from_float<T>(scratch[voxel * channels + c]);
    }
  }
}

void backward_scatter_f32(const BackwardParams& p, const Slab& slab, float* scratch) {
  backward_scatter<float>(p, slab, scratch);
}
void backward_scatter_bf16(const BackwardParams& p, const Slab& slab, float* scratch) {
  backward_scatter<bfloat16>(p, slab, scratch);
}
