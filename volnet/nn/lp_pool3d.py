"""3-D power-average pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.lp_pool3d import lp_pool3d

__all__ = ["LPPool3d"]


class LPPool3d(torch.nn.LPPool3d):
    """:class:`torch.nn.LPPool3d` on :func:`volnet.ops.lp_pool3d`: same constructor.

    >>> LPPool3d(2, 2)(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW]."""
        return lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)
