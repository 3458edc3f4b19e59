"""3-D max unpooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.max_unpool3d import max_unpool3d

__all__ = ["MaxUnpool3d"]


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """:class:`torch.nn.MaxUnpool3d` on :func:`volnet.ops.max_unpool3d`: same constructor.

    >>> indices = torch.zeros(1, 4, 2, 2, 2, dtype=torch.int64)
    >>> MaxUnpool3d(2)(torch.ones(1, 4, 2, 2, 2), indices).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW]; ``output_size`` where there is a choice."""
        return max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
