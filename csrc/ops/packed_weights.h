// Weights in the form their kernels want (packed, transformed), kept while the weights do not change.
//
// "Do not change" is decided by their contents: a digest of all their bits is taken at every call, because an
// in-place change through `.data`, or through another framework's view of the memory, leaves no other trace.
// A packed form is kept when the same weights are met twice in a row, so training, where they change at every
// step, pays for the digest alone and keeps no memory. The blocks are the pool's. Those that were used least
// recently go first when they would exceed the limit together; all go on memory::trim() and when the pool
// runs short. A block lives on while a call uses it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/digest/digest.h"
#include "memory/pool.h"
#include "torch_abi.h"

namespace volnet {

// Whether the elements fill their memory without gaps or overlaps, in any order of the axes.
bool is_dense(const Tensor& x);

digest::Digest digest_of(const void* data, int64_t bytes);

// Weights that we have made ourselves, and that nobody changes, are known by a digest that is told and not
// taken again. They are to be told once for each tensor over them, and forgotten when it is freed.
void know_digest(const void* data, const digest::Digest& digest);
void forget_digest(const void* data);

using PackedBlock = std::shared_ptr<const memory::Scratch>;
// What tells packed forms apart: where the weights lie, and everything the packing depends on.
using PackingKey = std::vector<int64_t>;

// The weights of one call of an operator.
class Weights {
 public:
  explicit Weights(const Tensor& tensor);

  const Tensor& tensor() const { return tensor_; }
  const std::optional<digest::Digest>& digest() const { return digest_; }

  // `bytes` that `pack(void*)` has filled, in this call or an earlier one with the same `packing`. That must
  // hold every parameter of the packing but the tensor's address, shape and dtype, with the function that
  // packs first (see packing_id).
  template <class Pack>
  PackedBlock packed(const PackingKey& packing, int64_t bytes, const char* what, const Pack& pack) const {
    const PackingKey key = full_key(packing);
    const Found found = find(key);
    if (found.block != nullptr) return found.block;
    auto block = std::make_shared<const memory::Scratch>(bytes, what);
    pack(block->as<void>());
    if (found.met_before) keep(key, block, bytes);
    return block;
  }

 private:
  struct Found {
    PackedBlock block;
    bool met_before;
  };
  PackingKey full_key(const PackingKey& packing) const;
  Found find(const PackingKey& key) const;
  void keep(const PackingKey& key, const PackedBlock& block, int64_t bytes) const;

  Tensor tensor_;
  std::optional<digest::Digest> digest_;  // none: weights with gaps between them, which are packed every time
};

// The address of a kernel or a packing function, as the first word of a PackingKey.
template <class Function>
int64_t packing_id(Function* function) {
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(function));
}

struct PackedWeightsStats {
  int64_t bytes = 0;   // kept, part of the pool's in_use
  int64_t reused = 0;  // calls that found theirs
};
PackedWeightsStats packed_weights_stats();

// The most bytes that are kept; 0 keeps none.
void set_packed_weights_limit(int64_t bytes);

}  // namespace volnet
