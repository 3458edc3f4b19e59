"""3-D max pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.max_pool3d import max_pool3d

__all__ = ["MaxPool3d"]


class MaxPool3d(torch.nn.MaxPool3d):
    """:class:`torch.nn.MaxPool3d` on :func:`volnet.ops.max_pool3d`: same constructor.

    >>> MaxPool3d(2)(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW], with indices where asked for."""
        return max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )
