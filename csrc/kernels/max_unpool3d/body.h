// The kernels: moves to and from scattered places, the same source for every level. Included inside the
// level's namespace, once.

template <class T>
int64_t forward(const Params& p, const Slab& slab) {
  const int64_t channels = slab.c.size(), voxels = slab.d.size() * p.y_slice;
  const int64_t first = slab.d.begin * p.y_slice;
  T* y =
      static_cast<T*>(p.result) + (slab.plane * p.y_slices * p.y_slice + first) * p.channels + slab.c.begin;
  if (channels == p.channels) {
    std::memset(y, 0, static_cast<size_t>(voxels * channels) * sizeof(T));
  } else {
    for (int64_t v = 0; v < voxels; ++v) {
      std::memset(y + v * p.channels, 0, static_cast<size_t>(channels) * sizeof(T));
    }
  }
  const int64_t begin = (slab.plane * p.slices + slab.sources.begin) * p.slice;
  const int64_t end = (slab.plane * p.slices + slab.sources.end) * p.slice;
  const auto inside = static_cast<uint64_t>(voxels);  // places of other slabs are beyond it
  int64_t count = 0;
  for (int64_t voxel = begin; voxel < end; ++voxel) {
    const T* x = static_cast<const T*>(p.source) + voxel * p.channels + slab.c.begin;
    const int64_t* indices = p.indices + voxel * p.channels + slab.c.begin;
    for (int64_t c = 0; c < channels; ++c) {
      const auto place = static_cast<uint64_t>(indices[c] - first);
      if (place >= inside) continue;
      y[static_cast<int64_t>(place) * p.channels + c] = x[c];
      ++count;
    }
  }
  return count;
}

// dx of a run of voxels of one plane, whose dy begins at `dy`; one_channel is p.channels == 1.
template <bool one_channel, class T>
inline void pick(const Params& p, const T* dy, const int64_t* indices, int64_t voxels, T* dx) {
  const auto inside = static_cast<uint64_t>(p.y_slices * p.y_slice);
  const int64_t channels = one_channel ? 1 : p.channels;
  for (int64_t voxel = 0; voxel < voxels; ++voxel, indices += channels, dx += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      dx[c] = static_cast<uint64_t>(indices[c]) < inside ? dy[indices[c] * channels + c] : T{};
    }
  }
}

template <class T>
void backward(const Params& p, int64_t begin, int64_t end) {
  const int64_t source = p.slices * p.slice, plane = p.y_slices * p.y_slice;
  for (int64_t voxel = begin; voxel < end;) {
    const T* dy = static_cast<const T*>(p.source) + voxel / source * plane * p.channels;
    const int64_t* indices = p.indices + voxel * p.channels;
    T* dx = static_cast<T*>(p.result) + voxel * p.channels;
    const int64_t run = std::min(end, (voxel / source + 1) * source) - voxel;
    if (p.channels == 1) {
      pick<true>(p, dy, indices, run, dx);
    } else {
      pick<false>(p, dy, indices, run, dx);
    }
    voxel += run;
  }
}

int64_t forward_f32(const Params& p, const Slab& slab) { return forward<float>(p, slab); }
int64_t forward_bf16(const Params& p, const Slab& slab) { return forward<bfloat16>(p, slab); }
void backward_f32(const Params& p, int64_t begin, int64_t end) { backward<float>(p, begin, end); }
void backward_bf16(const Params& p, int64_t begin, int64_t end) { backward<bfloat16>(p, begin, end); }
