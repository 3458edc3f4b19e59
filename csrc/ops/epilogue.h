// What conv3d and conv_transpose3d do beyond convolving, between the arguments of an operator and the
// Epilogue of a kernel.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/conv3d/epilogue.h"
#include "ops/activation.h"
#include "ops/tensors.h"

namespace volnet {

// As an operator gets them.
struct EpilogueArguments {
  std::string activation;  // "none", "relu", "leaky_relu", "prelu", "silu", "gelu" or "gelu_tanh"
  double negative_slope = 0;
  std::optional<Tensor> prelu_weight;  // [1] or [K]
  std::optional<Tensor> residual;      // like y
  bool statistics = false;
};

// The arguments for a result of these sizes, and the memory that the kernel's Epilogue points to.
template <class S>
struct PreparedEpilogue {
  using A = compute_t<S>;

  conv3d::Epilogue epilogue;
  Tensor mean, variance;  // [N, K], or [0] where they are not wanted

  PreparedEpilogue(const EpilogueArguments& arguments, const std::vector<int64_t>& sizes, const char* op)
      : mean(empty_plain<A>(
            arguments.statistics ? std::vector<int64_t>{sizes[0], sizes[1]} : std::vector<int64_t>{0}, op)),
        variance(empty_plain<A>(sizes_of(mean), op)) {
    epilogue.activation = activation_of(arguments.activation, op);
    if (epilogue.activation == Activation::prelu) {
      slopes_.assign(static_cast<size_t>(sizes[1]), static_cast<A>(arguments.negative_slope));
      if (arguments.activation == "prelu") read_slopes(arguments.prelu_weight, op);
      epilogue.slopes = slopes_.data();
    }
    if (arguments.residual) {
      VOLNET_CHECK(arguments.residual->scalar_type() == ScalarTypeOf<S>::value &&
                       sizes_of(*arguments.residual) == sizes,
                   op, ": residual must be like the result, ", shape_text(sizes));
      residual_ = to_layout(*arguments.residual, Layout5::channels_last, op);
      epilogue.residual = residual_->const_data_ptr();
    }
    if (arguments.statistics) {
      epilogue.mean = mean.mutable_data_ptr();
      epilogue.variance = variance.mutable_data_ptr();
    }
  }
  PreparedEpilogue(const PreparedEpilogue&) = delete;
  PreparedEpilogue& operator=(const PreparedEpilogue&) = delete;

 private:
  std::vector<A> slopes_;
  std::optional<Tensor> residual_;

  void read_slopes(const std::optional<Tensor>& weight, const char* op) {
    const auto filters = static_cast<int64_t>(slopes_.size());
    VOLNET_CHECK(weight && weight->dim() == 1 && weight->scalar_type() == ScalarTypeOf<S>::value &&
                     (weight->size(0) == 1 || weight->size(0) == filters),
                 op, ": prelu_weight must be [1] or [", filters, "] of the dtype of the input");
    for (int64_t k = 0; k < filters; ++k) {
      slopes_[static_cast<size_t>(k)] =
          to_float(data<S>(*weight)[weight->size(0) == 1 ? 0 : k * weight->stride(0)]);
    }
  }
};

// The slots of a call's statistics, where they are wanted: points the planned epilogue to them; once the
// pieces have run, merge() adds them up, in the order of the slots.
template <class A>
class Statistics {
 public:
  Statistics(conv3d::Epilogue& epilogue, int64_t batch, int64_t filters, const char* op)
      : batch_(batch), filters_(filters), slots_(epilogue.slots) {
    if (!epilogue.gathers()) return;
    mean_ = static_cast<A*>(epilogue.mean);
    variance_ = static_cast<A*>(epilogue.variance);
    const int64_t values = batch * slots_ * 4 * filters;
    memory_.emplace(values * static_cast<int64_t>(sizeof(A)), op);
    std::fill_n(memory_->as<A>(), values, A{0});
    epilogue.statistics = memory_->as<A>();
  }

  void merge() const {
    if (!memory_) return;
    constexpr int64_t block = 16;
    const int64_t blocks = (filters_ + block - 1) / block;
    for_each_piece(batch_ * blocks, [&](int64_t piece, int64_t) {
      const int64_t n = piece / blocks, first = piece % blocks * block;
      for (int64_t k = first; k < std::min(first + block, filters_); ++k) {
        double count = 0, mean = 0, squares = 0;
        for (int64_t slot = 0; slot < slots_; ++slot) {
          const A* value = memory_->as<A>() + (n * slots_ + slot) * 4 * filters_ + k;
          const double added = value[0];
          if (added == 0) continue;
          const double difference = static_cast<double>(value[filters_]) + value[2 * filters_] - mean;
          const double share = added / (count + added);
          squares += value[3 * filters_] + difference * difference * share * count;
          mean += difference * share;
          count += added;
        }
        mean_[n * filters_ + k] = static_cast<A>(mean);
        variance_[n * filters_ + k] = static_cast<A>(squares / count);
      }
    });
  }

 private:
  int64_t batch_, filters_, slots_;
  A* mean_ = nullptr;
  A* variance_ = nullptr;
  std::optional<memory::Scratch> memory_;
};

}  // namespace volnet
