// Loading of fused inputs for one instruction set; input.h is the specification. Included inside the
// namespace of the level after epilogue_body.h.

// Channels [first, first + lanes) of the concatenated inputs of one image: at(voxel) is their vector, zero
// beyond. It may lie across both.
template <class T, class S>
class InputVector {
  using E = typename T::element;

 public:
  InputVector(const Inputs& inputs, int64_t n, int64_t voxels, int64_t first, int64_t lanes) {
    for (const Input& input : inputs) {
      const int64_t count = std::min(lanes, input.channels - first);
      if (count > 0) {
        const int64_t at = n * input.channels + first;
        Part& part = parts_[count_++];
        part.x = static_cast<const S*>(input.x) + n * voxels * input.channels + first;
        part.step = input.channels;
        part.lanes = count;
        part.scale = input.scale == nullptr ? T::broadcast(1)
                                            : T::load(static_cast<const E*>(input.scale) + at, count);
        part.shift =
            input.shift == nullptr ? T::zero() : T::load(static_cast<const E*>(input.shift) + at, count);
        part.activation = input.activation;
        part.slope =
            input.slopes == nullptr ? T::zero() : T::load(static_cast<const E*>(input.slopes) + first, count);
        lanes -= count;
        first = 0;
      } else {
        first -= input.channels;
      }
    }
  }

  T at(int64_t voxel) const {
    if (count_ == 1) return parts_[0].at(voxel);
    E both[2 * T::width];
    parts_[0].at(voxel).store(both);
    parts_[1].at(voxel).store(both + parts_[0].lanes);
    return T::load(both);
  }

  // Voxels [begin, end), to_step elements apart.
  template <class Y>
  void copy(int64_t begin, int64_t end, int64_t lanes, Y* to, int64_t to_step) const {
    const Part& part = parts_[0];
    if (count_ == 1 && lanes == T::width && part.activation == Activation::none) {
      part.template copy<Activation::none>(begin, end, to, to_step);
    } else if (count_ == 1 && lanes == T::width && part.activation == Activation::relu) {
      part.template copy<Activation::relu>(begin, end, to, to_step);
    } else {
      for (int64_t i = begin; i < end; ++i, to += to_step) at(i).store(to, lanes);
    }
  }

 private:
  struct Part {
    const S* x;
    int64_t step, lanes;
    T scale, shift, slope;
    Activation activation;

    T at(int64_t voxel) const {
      const S* from = x + voxel * step;
      const T value = T::fma(lanes == T::width ? T::load(from) : T::load(from, lanes), scale, shift);
      if (activation == Activation::none) return value;
      if (activation == Activation::relu) return activate<Activation::relu>(value, slope);
      return activate_any(activation, value, slope);
    }

    template <Activation known, class Y>
    void copy(int64_t begin, int64_t end, Y* to, int64_t to_step) const {
      const S* from = x + begin * step;
      for (int64_t i = begin; i < end; ++i, from += step, to += to_step) {
        activate<known>(T::fma(T::load(from), scale, shift), slope).store(to);
      }
    }
  };
  Part parts_[2];
  int count_ = 0;
};

// Voxels [first, first + voxels) of the row that begins at voxel `row` of image n, for the channels
// [channel, channel + channels) of the concatenated inputs, into a dense row; what lies outside [0, input) is
// zero. image_voxels is what an image has.
template <class T, class S, class Y>
void gather_inputs(const Inputs& inputs, int64_t n, int64_t image_voxels, int64_t row, int64_t input,
                   int64_t channel, int64_t channels, int64_t first, int64_t voxels, Y* to) {
  const int64_t begin = std::clamp<int64_t>(-first, 0, voxels);
  const int64_t end = std::clamp<int64_t>(input - first, begin, voxels);
  std::fill_n(to, begin * channels, Y{});
  std::fill_n(to + end * channels, (voxels - end) * channels, Y{});
  for (int64_t c = 0; c < channels; c += T::width) {
    const int64_t lanes = std::min(T::width, channels - c);
    const InputVector<T, S> vector(inputs, n, image_voxels, channel + c, lanes);
    vector.copy(row + first + begin, row + first + end, lanes, to + begin * channels + c, channels);
  }
}

template <class T, class S>
void apply_inputs(const AppliedInputs& call, int64_t piece, void* to) {
  const int64_t rows = call.size[0] * call.size[1], width = call.size[2], channels = call.channels();
  gather_inputs<T, S>(call.inputs, piece / rows, rows * width, piece % rows * width, width, 0, channels, 0,
                      width, static_cast<S*>(to) + piece * width * channels);
}
