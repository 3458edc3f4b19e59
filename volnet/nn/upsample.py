"""Upsampling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.interpolate import interpolate

__all__ = ["Upsample"]


class Upsample(torch.nn.Upsample):
    """:class:`torch.nn.Upsample` for volumes, on :func:`volnet.ops.interpolate`: same constructor.

    >>> Upsample(scale_factor=2, mode="trilinear")(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 16, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W] to [N, C, OD, OH, OW]."""
        return interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )
