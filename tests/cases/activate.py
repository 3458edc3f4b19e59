from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def samples(**arguments):
    shapes = {
        "small": (2, 3, 3, 4, 5),
        "no_images": (0, 3, 4, 5, 6),
        "no_voxels": (2, 3, 0, 5, 6),
        "c15": (1, 15, 4, 5, 7),
        "c16": (2, 16, 3, 3, 4),
        "c17": (1, 17, 3, 3, 4),
        "c33": (2, 33, 4, 4, 18),
        "many_pieces": (2, 6, 24, 32, 48),
    }
    return [
        # Up to where the functions are flat.
        *(Sample(name, (3 * randn(*shape),), arguments) for name, shape in shapes.items()),
        # Not flat here: errors are in units of the largest value, of which there is but this one.
        Sample("one_voxel", (randn(1, 1, 1, 1, 1, seed=1),), arguments),
    ]


def prelu_samples():
    return [
        *(
            Sample(s.name, (*s.inputs, 0.2 + 0.1 * randn(s.inputs[0].shape[1], seed=1)), {})
            for s in samples()
        ),
        Sample("one_slope", (randn(2, 3, 4, 5, 6), randn(1, seed=1)), {}),
    ]


def case(name, function, reference, tolerance=8.0, gradient_tolerance=8.0, **arguments):
    return Case(
        name=name,
        kernels="activate_",
        function=function,
        reference=reference,
        samples=lambda: samples(**arguments),
        tolerance=tolerance,
        gradient_tolerance=gradient_tolerance,
        differentiable=(0,),
        volumes=(0,),
    )


# A product or a quotient of functions good to a few units in the last place; the gradient of the result is
# rounded even where the function is exact. torch's gradient of gelu_tanh, the reference in float64, cancels
# near 1.
CASES = [
    case("relu", ops.relu, F.relu, tolerance=0, gradient_tolerance=1),
    case("leaky_relu", ops.leaky_relu, F.leaky_relu, tolerance=1, gradient_tolerance=2, negative_slope=0.2),
    case("falling", ops.leaky_relu, F.leaky_relu, tolerance=1, gradient_tolerance=2, negative_slope=-0.5),
    case("silu", ops.silu, F.silu),
    case("gelu", ops.gelu, F.gelu, approximate="none"),
    case("gelu_tanh", ops.gelu, F.gelu, gradient_tolerance=64, approximate="tanh"),
    case("elu", ops.elu, F.elu, alpha=1.5),
    case("negative_elu", ops.elu, F.elu, alpha=-0.5),
    case("sigmoid", ops.sigmoid, torch.sigmoid),
    Case(
        name="prelu",
        function=ops.prelu,
        reference=F.prelu,
        samples=prelu_samples,
        tolerance=1,
        differentiable=(0, 1),
        volumes=(0,),
        # Sums over the voxels cancel.
        gradient_tolerance=64,
    ),
]
