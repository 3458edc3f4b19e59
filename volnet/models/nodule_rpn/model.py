"""A 3-D region proposal network for lung nodules, in one file.

A U-Net whose decoder stops at a quarter of the input resolution, where a head scores a few cubes (anchors) of
different sizes at every position: the design of the systems that won LUNA16 and the Data Science Bowl 2017.

    input 1 mm     [N, 1, D, H, W]
    stem, 1/2      one 5x5x5 convolution with stride 2, one residual block
    1/4            max pooling, two residual blocks  -----------------.
    1/8            max pooling, two residual blocks                   |
    1/4            transposed convolution, concatenated with ---------'  then one residual block
    head           one convolution, then a score and six box offsets per anchor

The full resolution is left at once because a whole CT at 1 mm has 20 to 40 million voxels: two thirds of the
arithmetic is spent at 1/2 and 1/4. Normalisation is by batch, not by group, so that the output at a place
depends on `RECEPTIVE_RADIUS` voxels around it and on nothing else: blocks with that halo are exact, and the
normalisation folds into the convolutions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import BatchNorm3d, ConvTranspose3d, Identity, Module, Sequential

from volnet.models.nodule_rpn.config import NoduleRPNConfig
from volnet.nn import Conv3d, MaxPool3d

INPUT_MULTIPLE = 8
"""Every side of the input must be a multiple of this."""
ANCHOR_STRIDE = 4
"""Input voxels per position of the output, along each axis."""
RECEPTIVE_RADIUS = 72
"""No output depends on input farther than this from its own 4³ voxels; a multiple of `INPUT_MULTIPLE`."""

# So that an untrained network scores about 0.01 everywhere and the first steps are not all false positives.
_PRIOR_LOGIT = -4.6


class ConvNorm(Sequential):
    """Convolution without bias, then batch normalisation: [N, C, D, H, W] -> [N, C', D/s, H/s, W/s]."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            Conv3d(inputs, outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
            BatchNorm3d(outputs),
        )


class ResidualBlock(Module):
    """Two 3x3x3 convolutions around a shortcut: [N, C, D, H, W] -> [N, C', D, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs)
        self.second = ConvNorm(outputs, outputs)
        self.shortcut = ConvNorm(inputs, outputs, kernel_size=1) if inputs != outputs else Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu_()
        return (self.second(y) + self.shortcut(x)).relu_()


class NoduleRPN(Module):
    """The network.

    Example:
        >>> model = NoduleRPN(NoduleRPNConfig(channels=(4, 4, 4))).eval()
        >>> logits, deltas = model(torch.zeros(1, 1, 16, 24, 32))
        >>> logits.shape, deltas.shape
        (torch.Size([1, 4, 4, 6, 8]), torch.Size([1, 4, 6, 4, 6, 8]))
    """

    def __init__(self, config: NoduleRPNConfig | None = None) -> None:
        super().__init__()
        self.config = config or NoduleRPNConfig()
        half, quarter, eighth = self.config.channels
        anchors = len(self.config.anchor_sizes)
        self.stem = ConvNorm(1, half, kernel_size=5, stride=2)
        self.level2 = ResidualBlock(half, half)
        self.pool = MaxPool3d(2)
        self.level4 = Sequential(ResidualBlock(half, quarter), ResidualBlock(quarter, quarter))
        self.level8 = Sequential(ResidualBlock(quarter, eighth), ResidualBlock(eighth, eighth))
        self.up = ConvTranspose3d(eighth, quarter, kernel_size=2, stride=2)
        self.decoder = ResidualBlock(2 * quarter, quarter)
        self.head = ConvNorm(quarter, quarter)
        self.score = Conv3d(quarter, anchors, 1)
        self.offset = Conv3d(quarter, 6 * anchors, 1)
        for layer, bias in ((self.score, _PRIOR_LOGIT), (self.offset, 0.0)):
            assert layer.bias is not None
            torch.nn.init.normal_(layer.weight, std=0.01)
            torch.nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score every anchor.

        Args:
            x: float [N, 1, D, H, W], HU scaled to 0..1 by the configuration's window, at its spacing; D, H
                and W are multiples of 8.

        Returns:
            logits [N, A, D/4, H/4, W/4] and box offsets [N, A, 6, D/4, H/4, W/4] for `decode_boxes`.

        Raises:
            ValueError: if the shape is not as above.
        """
        if x.ndim != 5 or x.shape[1] != 1 or any(n == 0 or n % INPUT_MULTIPLE for n in x.shape[2:]):
            raise ValueError(
                f"expected an input [N, 1, D, H, W] with sides that are multiples of {INPUT_MULTIPLE}, "
                f"got {list(x.shape)}"
            )
        x = self.level2(self.stem(x).relu_())
        skip = self.level4(self.pool(x))
        x = self.level8(self.pool(skip))
        x = self.decoder(torch.cat([self.up(x), skip], dim=1))
        x = self.head(x).relu_()
        offsets = self.offset(x)
        return self.score(x), offsets.unflatten(1, (len(self.config.anchor_sizes), 6))


def fold_batch_norm(model: NoduleRPN) -> NoduleRPN:
    """A copy for inference whose batch normalisations are part of the convolutions before them.

    Args:
        model: a network in eval mode.

    Returns:
        A new network with the same outputs up to rounding.

    Raises:
        ValueError: if the model is in training mode.

    Example:
        >>> folded = fold_batch_norm(NoduleRPN(NoduleRPNConfig(channels=(4, 4, 4))).eval())
        >>> any(isinstance(layer, BatchNorm3d) for layer in folded.modules())
        False
    """
    if model.training:
        raise ValueError("only a model in eval mode can be folded, got one in training mode")
    model = copy.deepcopy(model)
    for block in model.modules():
        if not isinstance(block, ConvNorm):
            continue
        conv, norm = block[0], block[1]
        assert isinstance(conv, Conv3d)
        assert isinstance(norm, BatchNorm3d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight = torch.nn.Parameter(conv.weight * scale.reshape(-1, 1, 1, 1, 1))
        conv.bias = torch.nn.Parameter(norm.bias - norm.running_mean * scale)
        block[1] = Identity()
    return model
