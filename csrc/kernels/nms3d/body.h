// Included inside volnet::nms3d::VOLNET_ISA.

template <class T>
struct Box {
  T lo[3], hi[3], volume;
};

template <class T>
static inline Box<T> read_box(const T* p) {
  Box<T> box{{p[0], p[1], p[2]}, {p[3], p[4], p[5]}, T(0)};
  box.volume = (p[3] - p[0]) * (p[4] - p[1]) * (p[5] - p[2]);
  return box;
}

// Cells along each axis; a coordinate's cell never decreases with the coordinate, so boxes with a common
// point have a common cell.
template <class T>
struct Grid {
  T origin[3], cells_per_voxel[3];
  int64_t cells[3];

  inline int64_t cell(int axis, T x) const {
    const T position = (x - origin[axis]) * cells_per_voxel[axis];
    if (!(position > T(0))) return 0;  // also the NaN of an extent beyond the largest T
    const T last = static_cast<T>(cells[axis] - 1);
    return position < last ? static_cast<int64_t>(position) : cells[axis] - 1;
  }
  inline int64_t count() const { return cells[0] * cells[1] * cells[2]; }
  inline void coarsen() {
    int64_t& largest = cells[0] >= cells[1] && cells[0] >= cells[2] ? cells[0]
                       : cells[1] >= cells[2]                       ? cells[1]
                                                                    : cells[2];
    largest -= (largest + 3) / 4;
  }
};

struct CellRange {
  int64_t lo[3], hi[3];  // both inclusive
};

template <class T>
static inline CellRange touched(const Grid<T>& grid, const T* box) {
  CellRange range;
  for (int a = 0; a < 3; ++a) {
    range.lo[a] = grid.cell(a, box[a]);
    range.hi[a] = grid.cell(a, box[3 + a]);
  }
  return range;
}

template <class T>
static inline Grid<T> choose_grid(const T* boxes, int64_t count) {
  Grid<T> grid;
  T extent[3];
  const int64_t limit = max_cells(count);
  for (int a = 0; a < 3; ++a) {
    T lo = boxes[a], hi = boxes[3 + a];
    double side = 0;
    for (int64_t i = 0; i < count; ++i) {
      lo = std::min(lo, boxes[6 * i + a]);
      hi = std::max(hi, boxes[6 * i + 3 + a]);
      side += static_cast<double>(boxes[6 * i + 3 + a]) - static_cast<double>(boxes[6 * i + a]);
    }
    side /= static_cast<double>(count);
    grid.origin[a] = lo;
    extent[a] = hi - lo;
    const double wanted = extent[a] > T(0) ? static_cast<double>(extent[a]) / (1.5 * side) : 1;
    grid.cells[a] =
        wanted < static_cast<double>(limit) ? std::max<int64_t>(static_cast<int64_t>(wanted), 1) : limit;
  }
  for (;; grid.coarsen()) {
    if (grid.cells[0] > limit / grid.cells[1] / grid.cells[2]) continue;
    for (int a = 0; a < 3; ++a) {
      grid.cells_per_voxel[a] = extent[a] > T(0) ? static_cast<T>(grid.cells[a]) / extent[a] : T(0);
    }
    if (grid.count() == 1) return grid;
    int64_t touches = 0;
    for (int64_t i = 0; i < count; ++i) {
      const CellRange r = touched(grid, boxes + 6 * i);
      touches += (r.hi[0] - r.lo[0] + 1) * (r.hi[1] - r.lo[1] + 1) * (r.hi[2] - r.lo[2] + 1);
    }
    if (touches <= count * touches_per_box) return grid;
  }
}

// Whether one of the boxes of a block has an IoU with `box` above the threshold. Unused places of a block
// hold zeros, a box without volume.
template <class V, class T>
static inline bool suppressed_by(const T* block, const Box<T>& box, T threshold) {
  const V zero = V::zero();
  for (int64_t i = 0; i < block_boxes; i += V::width) {
    V inter = zero;
    for (int a = 0; a < 3; ++a) {
      const V lo = V::max(V::load(block + a * block_boxes + i), V::broadcast(box.lo[a]));
      const V hi = V::min(V::load(block + (3 + a) * block_boxes + i), V::broadcast(box.hi[a]));
      const V side = V::max(hi - lo, zero);
      inter = a == 0 ? side : inter * side;
    }
    if (!V::any_greater(inter, zero)) continue;
    const V joint = V::load(block + 6 * block_boxes + i) + V::broadcast(box.volume) - inter;
    if (V::any_greater(inter / joint, V::broadcast(threshold))) return true;
  }
  return false;
}

template <class V, class T = typename V::element>
static inline void suppress(const Params<T>& p) {
  if (p.count == 0) return;
  const Grid<T> grid = choose_grid(p.boxes, p.count);
  const int64_t cells = grid.count();
  auto* blocks = static_cast<T*>(p.scratch);
  auto* first_block = reinterpret_cast<int64_t*>(blocks + max_blocks(p.count) * block_rows * block_boxes);
  int64_t* kept = first_block + cells;  // boxes in the cell so far
  std::memset(kept, 0, static_cast<size_t>(cells) * sizeof *kept);

  // Room in every cell for all the boxes that touch it.
  for (int64_t i = 0; i < p.count; ++i) {
    const CellRange r = touched(grid, p.boxes + 6 * i);
    for (int64_t d = r.lo[0]; d <= r.hi[0]; ++d) {
      for (int64_t h = r.lo[1]; h <= r.hi[1]; ++h) {
        for (int64_t w = r.lo[2]; w <= r.hi[2]; ++w) ++kept[(d * grid.cells[1] + h) * grid.cells[2] + w];
      }
    }
  }
  int64_t used = 0;
  for (int64_t c = 0; c < cells; ++c) {
    first_block[c] = used;
    used += (kept[c] + block_boxes - 1) / block_boxes;
    kept[c] = 0;
  }

  constexpr int64_t block_size = block_rows * block_boxes;
  for (int64_t i = 0; i < p.count; ++i) {
    const Box<T> box = read_box(p.boxes + 6 * i);
    const CellRange r = touched(grid, p.boxes + 6 * i);
    bool keep = true;
    for (int64_t d = r.lo[0]; d <= r.hi[0] && keep; ++d) {
      for (int64_t h = r.lo[1]; h <= r.hi[1] && keep; ++h) {
        for (int64_t w = r.lo[2]; w <= r.hi[2] && keep; ++w) {
          const int64_t c = (d * grid.cells[1] + h) * grid.cells[2] + w;
          const T* block = blocks + first_block[c] * block_size;
          for (int64_t k = 0; k < kept[c] && keep; k += block_boxes, block += block_size) {
            keep = !suppressed_by<V>(block, box, p.iou_threshold);
          }
        }
      }
    }
    p.keep[i] = keep;
    if (!keep) continue;
    for (int64_t d = r.lo[0]; d <= r.hi[0]; ++d) {
      for (int64_t h = r.lo[1]; h <= r.hi[1]; ++h) {
        for (int64_t w = r.lo[2]; w <= r.hi[2]; ++w) {
          const int64_t c = (d * grid.cells[1] + h) * grid.cells[2] + w;
          const int64_t place = kept[c]++;
          T* block = blocks + (first_block[c] + place / block_boxes) * block_size;
          T* slot = block + place % block_boxes;
          if (slot == block) std::memset(block, 0, block_size * sizeof(T));
          for (int a = 0; a < 3; ++a) {
            slot[a * block_boxes] = box.lo[a];
            slot[(3 + a) * block_boxes] = box.hi[a];
          }
          slot[6 * block_boxes] = box.volume;
        }
      }
    }
  }
}
