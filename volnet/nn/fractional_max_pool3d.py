"""3-D fractional max pooling as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops.fractional_max_pool3d import fractional_max_pool3d

__all__ = ["FractionalMaxPool3d"]


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """:class:`torch.nn.FractionalMaxPool3d` on :func:`volnet.ops.fractional_max_pool3d`: same constructor.

    >>> FractionalMaxPool3d(2, output_ratio=0.5)(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 4, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[N, C, D, H, W] or [C, D, H, W] to [N, C, OD, OH, OW], with indices where asked for."""
        assert not isinstance(self._random_samples, torch.nn.Module)
        return fractional_max_pool3d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )
