from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from tests.cases.norm import followed
from volnet import ops


def sample(name, shape, axes=1, *, affine=True, residual=False, **arguments):
    """x, weight, bias and residual; the norm is that of the last `axes` axes."""
    last = shape[-axes:]
    inputs = [randn(*shape)]
    if affine or residual:
        inputs += [1 + 0.5 * randn(*last, seed=1), randn(*last, seed=2)]
    if residual:
        inputs.append(randn(*shape, seed=3))
    return Sample(name, tuple(inputs), {"normalized_shape": last, **arguments})


def samples():
    return [
        sample("small", (3, 5, 8)),
        sample("no_rows", (0, 8)),
        sample("no_columns", (3, 0)),
        sample("plain_numbers", (4, 7), affine=False),
        sample("one_row", (9,)),
        sample("two_axes", (2, 3, 4, 5), 2),
        sample("five_axes", (1, 3, 4, 5, 6), 5),
        sample("columns_15", (11, 15)),
        sample("columns_16", (11, 16)),
        sample("columns_17", (11, 17)),
        sample("columns_48", (2, 3, 4, 5, 48)),
        sample("columns_65", (7, 65)),
        sample("columns_768", (40, 768)),
        sample("many_pieces", (3000, 96), residual=True, activation="relu"),
        sample("residual", (11, 33), residual=True),
        sample("relu", (4, 8), activation="relu"),
        sample("leaky_relu", (4, 33), activation="leaky_relu", negative_slope=0.2),
        sample("silu_after_residual", (11, 33), residual=True, activation="silu"),
        sample("gelu", (4, 33), activation="gelu"),
        sample("gelu_tanh", (4, 33), activation="gelu_tanh"),
        # A second pass through memory: rows longer than a core's cache.
        sample("long_rows", (2, 65, 64, 64), 3, residual=True, activation="relu"),
    ]


def layer_norm(x, weight=None, bias=None, residual=None, *, normalized_shape, **arguments):
    return ops.layer_norm(x, normalized_shape, weight, bias, residual=residual, **arguments)


def layer_norm_reference(x, weight=None, bias=None, residual=None, *, normalized_shape, **after):
    return followed(F.layer_norm(x, normalized_shape, weight, bias), residual, **after)


CASES = [
    Case(
        name="layer_norm",
        function=layer_norm,
        reference=layer_norm_reference,
        samples=samples,
        # Each value is the result of a few roundings. Of the gradients, sums over the rows cancel.
        tolerance=4.0,
        gradient_tolerance=128.0,
        differentiable=(0, 1, 2, 3),
    )
]
