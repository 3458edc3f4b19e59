"""3-D adaptive average pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.adaptive_avg_pool3d import adaptive_avg_pool3d

__all__ = ["AdaptiveAvgPool3d"]


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """:class:`torch.nn.AdaptiveAvgPool3d` on :func:`volnet.ops.adaptive_avg_pool3d`: same constructor.

    >>> AdaptiveAvgPool3d((1, None, 2))(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 1, 8, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW]."""
        return adaptive_avg_pool3d(input, self.output_size)
