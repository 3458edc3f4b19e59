"""Norms as modules: drop-ins for torch's, with the activation that follows them on request."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from volnet.ops.layer_norm import layer_norm
from volnet.ops.norm import batch_norm, group_norm, instance_norm

__all__ = ["BatchNorm3d", "GroupNorm", "InstanceNorm3d", "LayerNorm"]


class _Fused(torch.nn.Module):
    """Takes ``activation`` and ``negative_slope`` beside the arguments of the norm it is mixed into."""

    def __init__(
        self, *arguments: Any, activation: str | None = None, negative_slope: float = 0.01, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self.activation = activation
        self.negative_slope = negative_slope

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class BatchNorm3d(_Fused, torch.nn.BatchNorm3d):
    """:class:`torch.nn.BatchNorm3d` on :func:`volnet.ops.batch_norm`: same constructor, same ``state_dict``.

    >>> BatchNorm3d(4, activation="relu")(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 8, 8, 8])
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, C, D, H, W], and what is added before the activation, to the same."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        uses_running = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if uses_running else None,
            self.running_var if uses_running else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=residual,
        )


class InstanceNorm3d(_Fused, torch.nn.InstanceNorm3d):
    """:class:`torch.nn.InstanceNorm3d` on :func:`volnet.ops.instance_norm`: same constructor, same
    ``state_dict``.

    >>> InstanceNorm3d(4, affine=True)(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 8, 8, 8])
    """

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
        )


class GroupNorm(_Fused, torch.nn.GroupNorm):
    """:class:`torch.nn.GroupNorm` on :func:`volnet.ops.group_norm`: same constructor, same ``state_dict``.

    >>> GroupNorm(2, 4, activation="silu")(torch.zeros(1, 4, 8, 8, 8)).shape
    torch.Size([1, 4, 8, 8, 8])
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, C, ...], and what is added before the activation, to the same."""
        return group_norm(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=residual,
        )


class LayerNorm(_Fused, torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` on :func:`volnet.ops.layer_norm`: same constructor, same ``state_dict``.

    >>> LayerNorm(4)(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., *normalized_shape], and what is added before the activation, to the same."""
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            negative_slope=self.negative_slope,
            residual=residual,
        )
