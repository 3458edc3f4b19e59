#include "ops/packed_weights.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <list>
#include <mutex>
#include <unordered_map>

#include "memory/key_hash.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using digest::Digest;

// Blocks are handed back to the pool after the lock is released: the two locks are never held together.
class Cache {
 public:
  std::pair<PackedBlock, bool> find(const PackingKey& key, const Digest& digest) {
    std::vector<PackedBlock> dropped;
    const std::lock_guard lock(mutex_);
    const auto it = index_.find(key);
    if (it == index_.end()) {
      entries_.push_front({key, digest, nullptr, 0});
      index_[key] = entries_.begin();
      evict(dropped);
      return {nullptr, false};
    }
    entries_.splice(entries_.begin(), entries_, it->second);
    Entry& entry = entries_.front();
    if (entry.digest != digest) {
      drop_block(entry, dropped);
      entry.digest = digest;
      return {nullptr, false};
    }
    stats_.reused += entry.block != nullptr;
    return {entry.block, true};
  }

  void keep(const PackingKey& key, const Digest& digest, const PackedBlock& block, int64_t bytes) {
    std::vector<PackedBlock> dropped;
    const std::lock_guard lock(mutex_);
    const auto it = index_.find(key);
    // Another thread may have met other weights, or kept its own block, in the meantime.
    if (bytes > limit_ || it == index_.end()) return;
    Entry& entry = *it->second;
    if (entry.digest != digest || entry.block != nullptr) return;
    entry.block = block;
    entry.bytes = bytes;
    stats_.bytes += bytes;
    evict(dropped);
  }

  void clear() {
    std::list<Entry> dropped;
    const std::lock_guard lock(mutex_);
    dropped.swap(entries_);
    index_.clear();
    stats_.bytes = 0;
  }

  void set_limit(int64_t bytes) {
    std::vector<PackedBlock> dropped;
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    evict(dropped);
  }

  PackedWeightsStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  struct Entry {
    PackingKey key;
    Digest digest;
    PackedBlock block;  // null until the same weights were met twice
    int64_t bytes;
  };

  void drop_block(Entry& entry, std::vector<PackedBlock>& dropped) {
    stats_.bytes -= entry.bytes;
    entry.bytes = 0;
    dropped.push_back(std::move(entry.block));
    entry.block = nullptr;
  }

  // The least recently used go, until bytes and entries are within their limits.
  void evict(std::vector<PackedBlock>& dropped) {
    constexpr size_t most_entries = 1 << 14;
    for (auto it = entries_.end(); it != entries_.begin() && stats_.bytes > limit_;) {
      --it;
      if (it->block != nullptr) drop_block(*it, dropped);
    }
    while (entries_.size() > most_entries) {
      drop_block(entries_.back(), dropped);
      index_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }

  std::mutex mutex_;
  std::list<Entry> entries_;  // the most recently used first
  std::unordered_map<PackingKey, std::list<Entry>::iterator, KeyHash> index_;
  int64_t limit_ = int64_t{1} << 30;
  PackedWeightsStats stats_;
};

// Never destroyed, and safe to fork, for the same reasons as the pool.
Cache& cache() {
  static Cache* instance = [] {
    auto* made = new Cache;
    pthread_atfork([] { cache().mutex().lock(); }, [] { cache().mutex().unlock(); },
                   [] { cache().mutex().unlock(); });
    memory::on_shortage([] { cache().clear(); });
    return made;
  }();
  return *instance;
}

struct Known {
  struct Entry {
    Digest digest;
    int64_t tensors = 0;
  };
  std::mutex mutex;
  std::unordered_map<const void*, Entry> entries;
};

// Never destroyed, and safe to fork, as the cache.
Known& known() {
  static Known* instance = [] {
    auto* made = new Known;
    pthread_atfork([] { known().mutex.lock(); }, [] { known().mutex.unlock(); },
                   [] { known().mutex.unlock(); });
    return made;
  }();
  return *instance;
}

std::optional<Digest> known_digest(const void* data) {
  const std::lock_guard lock(known().mutex);
  const auto it = known().entries.find(data);
  return it == known().entries.end() ? std::nullopt : std::optional(it->second.digest);
}

}  // namespace

bool is_dense(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (x.size(i) > 1) axes.emplace_back(x.stride(i), x.size(i));
  }
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

Digest digest_of(const void* data, int64_t bytes) {
  constexpr int64_t piece_bytes = int64_t{256} << 10;
  const auto kernel = digest::block_sums.best();
  const int64_t pieces = std::max<int64_t>((bytes + piece_bytes - 1) / piece_bytes, 1);
  std::vector<Digest> parts(static_cast<size_t>(pieces));
  for_each_piece(pieces, [&](int64_t piece, int64_t) {
    const int64_t first = piece * piece_bytes;
    digest::extend(kernel, static_cast<const char*>(data) + first, std::min(piece_bytes, bytes - first),
                   parts[static_cast<size_t>(piece)]);
  });
  if (pieces == 1) return parts[0];
  Digest whole;
  digest::extend(kernel, parts.data(), pieces * static_cast<int64_t>(sizeof(Digest)), whole);
  return whole;
}

void know_digest(const void* data, const Digest& digest) {
  const std::lock_guard lock(known().mutex);
  Known::Entry& entry = known().entries[data];
  entry.digest = digest;
  ++entry.tensors;
}

void forget_digest(const void* data) {
  const std::lock_guard lock(known().mutex);
  const auto it = known().entries.find(data);
  if (--it->second.tensors == 0) known().entries.erase(it);
}

Weights::Weights(const Tensor& tensor) : tensor_(tensor) {
  digest_ = known_digest(tensor.const_data_ptr());
  if (!digest_ && tensor.numel() > 0 && is_dense(tensor)) {
    digest_ =
        digest_of(tensor.const_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
  }
}

PackingKey Weights::full_key(const PackingKey& packing) const {
  PackingKey key = packing;
  key.push_back(static_cast<int64_t>(reinterpret_cast<intptr_t>(tensor_.const_data_ptr())));
  key.push_back(static_cast<int64_t>(tensor_.scalar_type()));
  for (int64_t i = 0; i < tensor_.dim(); ++i) {
    key.push_back(tensor_.size(i));
    key.push_back(tensor_.stride(i));
  }
  return key;
}

Weights::Found Weights::find(const PackingKey& key) const {
  if (!digest_) return {nullptr, false};
  const auto [block, met_before] = cache().find(key, *digest_);
  return {block, met_before};
}

void Weights::keep(const PackingKey& key, const PackedBlock& block, int64_t bytes) const {
  cache().keep(key, *digest_, block, bytes);
}

PackedWeightsStats packed_weights_stats() { return cache().stats(); }
void set_packed_weights_limit(int64_t bytes) { cache().set_limit(bytes); }

}  // namespace volnet
