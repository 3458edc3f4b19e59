"""3-D average pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.avg_pool3d import avg_pool3d

__all__ = ["AvgPool3d"]


class AvgPool3d(torch.nn.AvgPool3d):
    """:class:`torch.nn.AvgPool3d` on :func:`volnet.ops.avg_pool3d`: same constructor.

    >>> AvgPool3d(2)(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW]."""
        return avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )
