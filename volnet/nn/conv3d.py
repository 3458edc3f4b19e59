"""3-D convolution as a module."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from volnet.ops.conv3d import conv3d

__all__ = ["Conv3d"]


class Conv3d(nn.Conv3d):
    """:class:`torch.nn.Conv3d` on volnet's kernels: same constructor, same ``state_dict``.

    >>> import torch
    >>> Conv3d(1, 8, kernel_size=3, padding=1)(torch.zeros(1, 1, 4, 5, 6)).shape
    torch.Size([1, 8, 4, 5, 6])
    """

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0, 0)
        return conv3d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
