"""What ends a segmentation network: the scores of its classes as shares, and as labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from operators.moving import backward, forward, volumes
from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, relative_l2
from volnet import ops


@operator(*BOTH)
def softmax(shape: Shape) -> Work:
    return forward(shape, lambda x: ops.softmax(x[0], 1), lambda x: F.softmax(x[0], 1))


@operator(*BOTH, shapes="softmax")
def softmax_backward(shape: Shape) -> Work:
    """Floor: the gradient, the result, dx."""
    return backward(shape, lambda x: ops.softmax(x[0], 1), lambda x: F.softmax(x[0], 1), passes=3)


@operator(*BOTH, shapes="softmax")
def argmax(shape: Shape) -> Work:
    """Labels of a byte; torch's have eight."""
    (x,) = volumes(shape, 1)
    expected = torch.argmax(x.double(), 1).double()
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        scores = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ops.argmax, scores)
        implementations[f"torch {layout}"] = partial(torch.argmax, scores, 1)
    return Work(
        implementations,
        error=lambda labels: relative_l2(labels, expected),
        tolerance=0.0,
        bytes=float(nbytes(x) + expected.numel()),
    )
