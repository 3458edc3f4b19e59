"""3-D adaptive max pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.adaptive_max_pool3d import adaptive_max_pool3d

__all__ = ["AdaptiveMaxPool3d"]


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """:class:`torch.nn.AdaptiveMaxPool3d` on :func:`volnet.ops.adaptive_max_pool3d`: same constructor.

    >>> AdaptiveMaxPool3d((1, None, 2))(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 1, 8, 2])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW], with indices where asked for."""
        return adaptive_max_pool3d(input, self.output_size, self.return_indices)
