"""A volume copied to the other memory layout: private, between a network and its caller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet

__all__: list[str] = []


@torch.library.register_fake("volnet::_to_layout")
def _(x: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, None


torch.library.register_autograd("volnet::_to_layout", _backward, setup_context=_setup)
