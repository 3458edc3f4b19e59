// Included inside volnet::cat::VOLNET_ISA, after Vec. cat.h is the specification.
#include "kernels/bytes/writers.h"

template <class Writer>
inline void join_to(const Params& p, int64_t begin, int64_t end, Writer& out) {
  for (int64_t v = begin; v < end; ++v) {
    for (int64_t k = 0; k < p.count; ++k) out.copy(p.parts[k].data + v * p.parts[k].run, p.parts[k].run);
  }
  out.finish();
}

inline int64_t run_of_all(const Params& p) {
  int64_t run = 0;
  for (int64_t k = 0; k < p.count; ++k) run += p.parts[k].run;
  return run;
}

void join(const Params& p, int64_t begin, int64_t end) {
  char* const to = p.joined + begin * run_of_all(p);
  if (p.stream) {
    Streamed out(to);
    join_to(p, begin, end, out);
  } else {
    Direct out{to};
    join_to(p, begin, end, out);
  }
}

template <class Writer>
inline void split_to(const char* from, int64_t step, int64_t run, int64_t voxels, Writer& out) {
  for (int64_t v = 0; v < voxels; ++v) out.copy(from + v * step, run);
  out.finish();
}

// One part after another: the voxels of a call fit a core's cache.
void split(const Params& p, int64_t begin, int64_t end) {
  const int64_t step = run_of_all(p);
  const char* from = p.joined + begin * step;
  for (int64_t k = 0; k < p.count; ++k) {
    const Part& part = p.parts[k];
    if (p.stream) {
      Streamed out(part.data + begin * part.run);
      split_to(from, step, part.run, end - begin, out);
    } else {
      Direct out{part.data + begin * part.run};
      split_to(from, step, part.run, end - begin, out);
    }
    from += part.run;
  }
}

void copy(char* to, const char* from, int64_t begin, int64_t end, bool stream) {
  if (stream) {
    Streamed out(to + begin);
    split_to(from + begin, 0, end - begin, 1, out);
  } else {
    copy_bytes(to + begin, from + begin, end - begin);
  }
}
