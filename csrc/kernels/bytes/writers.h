// Runs of bytes written one after another. Included inside the namespace of the level after VecBytes.

static inline void copy_bytes(char* to, const char* from, int64_t n) {
  constexpr int64_t width = VecBytes::width;
  if (n < width) {
    VecBytes::load(from, n).store(to, n);
    return;
  }
  for (int64_t i = 0; i + width < n; i += width) VecBytes::load(from + i).store(to + i);
  VecBytes::load(from + n - width).store(to + n - width);  // overlaps the one before
}

static inline void fill_bytes(char* to, VecBytes pad, int64_t n) {
  constexpr int64_t width = VecBytes::width;
  if (n < width) {
    pad.store(to, n);
    return;
  }
  for (int64_t i = 0; i + width < n; i += width) pad.store(to + i);
  pad.store(to + n - width);
}

// Where the bytes of consecutive rows go: straight to memory, ...
struct Direct {
  char* at;

  inline void copy(const char* from, int64_t n) {
    copy_bytes(at, from, n);
    at += n;
  }
  inline void fill(VecBytes pad, int64_t n) {
    fill_bytes(at, pad, n);
    at += n;
  }
  inline void finish() {}
};

// ... or gathered in a buffer that stays in the first-level cache, from which whole lines are streamed.
struct Streamed {
  static constexpr int64_t line = 64, capacity = 4096;
  alignas(64) char buffer[capacity];
  char* at;       // where buffer[begin] belongs: at % line == begin % line
  int64_t begin;  // first byte of the buffer that is in use; 0 after the first flush
  int64_t end;    // one past the last

  explicit inline Streamed(char* to) : at(to), begin(reinterpret_cast<intptr_t>(to) % line), end(begin) {}

  inline void flush() {
    const int64_t first = std::min((begin + line - 1) / line * line, end);
    const int64_t last = std::max(end / line * line, first);
    copy_bytes(at, buffer + begin, first - begin);
    char* const to = at - begin;
    for (int64_t i = first; i < last; i += VecBytes::width) VecBytes::load(buffer + i).stream(to + i);
    copy_bytes(to + last, buffer + last, end - last);
    at = to + end;
    begin = end = 0;
  }
  inline void copy(const char* from, int64_t n) {
    while (n > 0) {
      const int64_t part = std::min(n, capacity - end);
      copy_bytes(buffer + end, from, part);
      end += part;
      from += part;
      n -= part;
      if (end == capacity) flush();
    }
  }
  inline void fill(VecBytes pad, int64_t n) {
    while (n > 0) {
      const int64_t part = std::min(n, capacity - end);
      fill_bytes(buffer + end, pad, part);
      end += part;
      n -= part;
      if (end == capacity) flush();
    }
  }
  inline void finish() {
    flush();
    VecBytes::stream_end();
  }
};
