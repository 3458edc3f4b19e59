"""The gradients of a convolution have the precision that the thread had when it ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from volnet._extension import _C
from volnet.precision import of_thread


def register_autograd(
    name: str, backward: Callable[..., Any], *, setup_context: Callable[[Any, Any, Any], None]
) -> None:
    """:func:`torch.library.register_autograd` for an operator that convolves."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.thread_precision = _C.thread_precision()
        setup_context(ctx, inputs, output)

    def run(ctx: Any, *grads: Any) -> Any:
        with of_thread(ctx.thread_precision):
            return backward(ctx, *grads)

    torch.library.register_autograd(name, run, setup_context=setup)
