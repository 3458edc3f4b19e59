// Part of vec_avx2.h and vec_avx512.h. AddressSanitizer does not look into masked, gathering and streaming
// instructions: each says here what it touches. Without the sanitizer these are empty.
static inline void reads([[maybe_unused]] const void* p, [[maybe_unused]] int64_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __builtin___asan_loadN(const_cast<void*>(p), bytes);
#endif
}
static inline void writes([[maybe_unused]] void* p, [[maybe_unused]] int64_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __builtin___asan_storeN(p, bytes);
#endif
}
// p[offsets[i]] for i < n.
template <class T>
static inline void reads_at([[maybe_unused]] const T* p, [[maybe_unused]] const int32_t* offsets,
                            [[maybe_unused]] int64_t n) {
#ifdef __SANITIZE_ADDRESS__
  for (int64_t i = 0; i < n; ++i) reads(p + offsets[i], sizeof *p);
#endif
}
