// Included inside volnet::layout::VOLNET_ISA, after the tiles of the level.

// Tiles of a strip are moved along the longer axis of the image, with the few rows or columns of one tile
// across: whole cache lines, and no more streams than the ways of a cache when the pitch is a power of two.
static constexpr int64_t strip = 256;

// A tile that would reach past the end starts earlier and repeats some of its neighbour's work.
template <class E>
static inline void tile_at(const Transpose& p, int64_t r, int64_t c, bool stream) {
  const E* src = static_cast<const E*>(p.src) + r * p.columns + c;
  E* dst = static_cast<E*>(p.dst) + c * p.rows + r;
  if (stream && r % Tile<E>::rows == 0) {
    Tile<E>::stream(src, p.columns, dst, p.rows);
  } else {
    Tile<E>::move(src, p.columns, dst, p.rows);
  }
}

template <class E>
static inline void tiles(const Transpose& p, const Rectangle& part, bool stream) {
  constexpr int64_t rows = Tile<E>::rows, columns = Tile<E>::columns;
  const int64_t last_row = part.row_end - rows, last_column = part.column_end - columns;
  if (p.columns >= p.rows) {
    for (int64_t begin = part.column_begin; begin < part.column_end; begin += strip) {
      const int64_t end = std::min(begin + strip, part.column_end);
      for (int64_t r = part.row_begin; r < part.row_end; r += rows) {
        for (int64_t c = begin; c < end; c += columns) {
          tile_at<E>(p, std::min(r, last_row), std::min(c, last_column), stream);
        }
      }
    }
  } else {
    for (int64_t begin = part.row_begin; begin < part.row_end; begin += strip) {
      const int64_t end = std::min(begin + strip, part.row_end);
      for (int64_t c = part.column_begin; c < part.column_end; c += columns) {
        for (int64_t r = begin; r < end; r += rows) {
          tile_at<E>(p, std::min(r, last_row), std::min(c, last_column), stream);
        }
      }
    }
  }
}

template <class E>
static inline void part_tiles(const Transpose& p, const Rectangle& part) {
  constexpr int64_t rows = Tile<E>::rows, columns = Tile<E>::columns;
  for (int64_t r = part.row_begin; r < part.row_end; r += rows) {
    for (int64_t c = part.column_begin; c < part.column_end; c += columns) {
      Tile<E>::move_part(static_cast<const E*>(p.src) + r * p.columns + c, p.columns,
                         static_cast<E*>(p.dst) + c * p.rows + r, p.rows, std::min(rows, part.row_end - r),
                         std::min(columns, part.column_end - c));
    }
  }
}

static constexpr int64_t line = 64;

// Whether every row of dst starts as its first one does, at a multiple of a cache line.
static inline bool aligned(const void* dst, int64_t pitch_bytes) {
  return reinterpret_cast<uintptr_t>(dst) % line == 0 && pitch_bytes % line == 0;
}

template <class E>
static inline void transpose(const Transpose& p, const Rectangle& part) {
  constexpr auto size = static_cast<int64_t>(sizeof(E));
  const int64_t row_count = part.row_end - part.row_begin, column_count = part.column_end - part.column_begin;
  const bool joins = p.rows <= Few<E>::most && row_count == p.rows;
  const bool splits = p.columns <= Few<E>::most && column_count == p.columns;
  if (joins || splits) {
    const int64_t channels = joins ? p.rows : p.columns;
    const int64_t voxels = joins ? column_count : row_count;
    const int64_t pitch = joins ? p.columns : p.rows;
    const E* src = static_cast<const E*>(p.src) + (joins ? part.column_begin : part.row_begin * channels);
    E* dst = static_cast<E*>(p.dst) + (joins ? part.column_begin * channels : part.row_begin);
    const bool stream = p.stream && aligned(dst, joins ? 0 : pitch * size);
    Few<E>::move(joins, channels, src, dst, pitch, voxels, stream);
  } else if (row_count >= Tile<E>::rows && column_count >= Tile<E>::columns) {
    tiles<E>(p, part, p.stream && aligned(p.dst, p.rows * size));
  } else {
    part_tiles<E>(p, part);
  }
  if (p.stream) stream_end();
}
