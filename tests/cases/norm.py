from __future__ import annotations

import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops

ACTIVATIONS = {
    None: lambda z, slope: z,
    "relu": lambda z, slope: F.relu(z),
    "leaky_relu": F.leaky_relu,
    "silu": lambda z, slope: F.silu(z),
    "gelu": lambda z, slope: F.gelu(z),
    "gelu_tanh": lambda z, slope: F.gelu(z, approximate="tanh"),
}


def followed(z, residual, activation=None, negative_slope=0.01):
    """What the operators do after torch's norm, in torch's words."""
    return ACTIVATIONS[activation](z if residual is None else z + residual, negative_slope)


def nothing(x, weight, bias):
    """No values have gradients of zero; torch's instance norm fails on them, its group norm says NaN."""
    return x * weight.reshape(1, -1, 1, 1, 1) + bias.reshape(1, -1, 1, 1, 1)


def sample(name, shape, *, affine=True, residual=False, offset=0.0, **arguments):
    """x, weight, bias and residual."""
    channels = shape[1]
    inputs = [randn(*shape) + offset]
    if affine or residual:
        inputs += [1 + 0.5 * randn(channels, seed=1), randn(channels, seed=2)]
    if residual:
        inputs.append(randn(*shape, seed=3))
    return Sample(name, tuple(inputs), arguments)


def samples(**arguments):
    # The gradient that the tests begin with hardly changes within a channel, and a norm takes away what is
    # constant and what is proportional to x: the activations leave something of it.
    relu, silu = ({"activation": name, **arguments} for name in ("relu", "silu"))
    return [
        sample("small", (2, 4, 3, 3, 4), **arguments),
        sample("no_images", (0, 4, 4, 5, 6), **arguments),
        sample("no_voxels", (2, 4, 0, 5, 6), **arguments),
        sample("no_weight", (1, 4, 3, 4, 5), affine=False, **arguments),
        sample("few_voxels", (3, 4, 1, 1, 5), **silu),
        sample("c1", (2, 1, 5, 6, 33), **relu),
        sample("c3", (1, 3, 5, 6, 65), **relu),
        sample("c15", (2, 15, 4, 5, 7), **relu),
        sample("c16", (1, 16, 4, 6, 15), **relu),
        sample("c17", (2, 17, 5, 4, 16), **relu),
        sample("c33", (1, 33, 4, 4, 18), **relu),
        sample("c80", (3, 80, 3, 3, 4), **relu),
        sample("c1025", (1, 1025, 2, 3, 4), **relu),
        sample("many_pieces", (2, 6, 24, 32, 48), residual=True, **silu),
        sample("relu", (2, 4, 3, 3, 4), **relu),
        sample("relu_after_residual", (2, 6, 5, 6, 7), residual=True, **relu),
        sample("residual", (2, 6, 5, 6, 7), residual=True, **arguments),
        sample("leaky_relu", (1, 6, 3, 4, 5), activation="leaky_relu", negative_slope=0.2, **arguments),
        sample("falling", (1, 6, 3, 4, 5), activation="leaky_relu", negative_slope=-0.5, **arguments),
        sample("silu", (1, 6, 3, 4, 5), **silu),
        sample("gelu", (1, 6, 3, 4, 5), activation="gelu", **arguments),
        sample("gelu_tanh", (1, 6, 3, 4, 5), activation="gelu_tanh", **arguments),
        sample("silu_after_residual", (2, 18, 5, 6, 7), residual=True, **silu),
    ]


def samples_of_groups():
    groups = {"c1": 1, "c15": 5, "c17": 17, "c33": 3, "c80": 8, "c1025": 41}
    chosen = []
    for one in samples():
        channels = one.inputs[0].shape[1]
        number = groups.get(one.name, 2 if channels % 2 == 0 else 1)
        chosen.append(Sample(one.name, one.inputs, one.arguments | {"num_groups": number}))
    return [*chosen, sample("one_voxel", (3, 8, 1, 1, 1), num_groups=2)]


def samples_of_batches():
    return [*samples(), sample("one_voxel", (17, 5, 1, 1, 1)), sample("one_column", (5, 1, 1, 1, 1))]


# torch 2.13's batch norm, and its instance norm, have wrong gradients where x and the gradient of the result
# are in different layouts: the references get plain volumes.


def batch_norm(x, weight=None, bias=None, residual=None, **arguments):
    return ops.batch_norm(x, None, None, weight, bias, True, residual=residual, **arguments)


def batch_norm_reference(x, weight=None, bias=None, residual=None, **after):
    return followed(F.batch_norm(x.contiguous(), None, None, weight, bias, True), residual, **after)


def trained_batch_norm(x, weight=None, bias=None, residual=None, **arguments):
    mean, variance = running(x)
    return ops.batch_norm(x, mean, variance, weight, bias, residual=residual, **arguments)


def trained_batch_norm_reference(x, weight=None, bias=None, residual=None, **after):
    return followed(F.batch_norm(x.contiguous(), *running(x), weight, bias), residual, **after)


def running(x):
    """Statistics that those of x have nothing to do with."""
    return tuple(values[: x.shape[1]].to(x.dtype) for values in RUNNING)


# The same numbers in every dtype.
RUNNING = [x.bfloat16().double() for x in (randn(1025, seed=5), 1 + randn(1025, seed=6) ** 2)]


def instance_norm(x, weight=None, bias=None, residual=None, **arguments):
    return ops.instance_norm(x, None, None, weight, bias, residual=residual, **arguments)


def instance_norm_reference(x, weight=None, bias=None, residual=None, **after):
    if x.numel() == 0:
        return nothing(x, weight, bias)
    return followed(F.instance_norm(x.contiguous(), None, None, weight, bias), residual, **after)


def group_norm(x, weight=None, bias=None, residual=None, *, num_groups, **arguments):
    return ops.group_norm(x, num_groups, weight, bias, residual=residual, **arguments)


def group_norm_reference(x, weight=None, bias=None, residual=None, *, num_groups, **after):
    if x.numel() == 0:
        return nothing(x, weight, bias)
    return followed(F.group_norm(x.contiguous(), num_groups, weight, bias), residual, **after)


# Each value is the result of a few roundings, in float64 of those of the reference's sums. Of a gradient the
# norm takes away most, and sums over the voxels cancel.
BOUNDS = {"tolerance": 16.0, "gradient_tolerance": 128.0, "differentiable": (0, 1, 2, 3), "volumes": (0, 3)}

CASES = [
    Case(
        name="batch_norm",
        kernels="norm_",
        function=batch_norm,
        reference=batch_norm_reference,
        samples=samples_of_batches,
        **BOUNDS,
    ),
    Case(
        name="trained_batch_norm",
        kernels="norm_",
        function=trained_batch_norm,
        reference=trained_batch_norm_reference,
        samples=samples_of_batches,
        **BOUNDS,
    ),
    Case(
        name="instance_norm",
        kernels="norm_",
        function=instance_norm,
        reference=instance_norm_reference,
        samples=samples,
        **BOUNDS,
    ),
    Case(
        name="group_norm",
        kernels="norm_",
        function=group_norm,
        reference=group_norm_reference,
        samples=samples_of_groups,
        **BOUNDS,
    ),
]
