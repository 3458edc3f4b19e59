from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, x, w, bias=True, **arguments):
    """x: shape of the input; w: shape of the weight."""
    return Sample(name, (randn(*x), randn(*w, seed=1), *([randn(w[0], seed=2)] if bias else [])), arguments)


def reference(x, w, bias=None, **arguments):
    # torch takes no batch of zero images: convolve one more and drop it.
    images = x.shape[0]
    if images == 0:
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that "same" with even kernels copies its input
        return F.conv3d(x, w, bias, **arguments)[:images]


def samples():
    return [
        sample("one_voxel", (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
        sample("no_images", (0, 3, 4, 5, 6), (2, 3, 3, 3, 3), padding=1),
        sample("first_layer", (1, 1, 5, 6, 17), (32, 1, 3, 3, 3), padding=1),
        sample("c3_k15", (2, 3, 4, 5, 6), (15, 3, 3, 3, 3), padding=1),
        sample("c15_k16", (1, 15, 3, 4, 15), (16, 15, 3, 3, 3), padding=1),
        sample("c16_k17", (1, 16, 3, 4, 16), (17, 16, 3, 3, 3), padding=1),
        sample("c17_k33", (1, 17, 3, 3, 29), (33, 17, 3, 3, 3), padding=1),
        sample("c33_k3", (1, 33, 3, 4, 5), (3, 33, 3, 3, 3), padding=1),
        sample("one_filter", (1, 4, 5, 6, 7), (1, 4, 3, 3, 3), bias=False, padding=1),
        sample("no_bias", (1, 4, 5, 6, 7), (8, 4, 3, 3, 3), bias=False),
        sample("pointwise", (1, 16, 3, 4, 5), (20, 16, 1, 1, 1)),
        sample("pointwise_long_rows", (2, 17, 5, 16, 17), (70, 17, 1, 1, 1)),
        sample("anisotropic", (1, 4, 5, 6, 7), (6, 4, 1, 3, 3), padding=(0, 1, 1)),
        sample("even_kernel", (1, 3, 6, 6, 6), (4, 3, 2, 4, 2), padding=(1, 2, 0)),
        sample("k5", (1, 2, 7, 7, 7), (4, 2, 5, 5, 5), padding=2),
        sample("stem", (1, 1, 9, 12, 11), (16, 1, 7, 7, 7), stride=(2, 2, 1), padding=3),
        sample("stride2", (1, 5, 7, 8, 9), (6, 5, 3, 3, 3), stride=2, padding=1),
        sample("stride2_k70", (1, 9, 4, 5, 33), (70, 9, 3, 3, 3), stride=2, padding=1),
        sample("stride3_kernel1", (1, 3, 7, 8, 9), (4, 3, 1, 1, 1), stride=3),
        sample("stride_over_kernel", (2, 2, 9, 8, 10), (3, 2, 2, 2, 2), stride=(3, 4, 5), padding=1),
        sample("dilation2", (1, 4, 7, 8, 9), (4, 4, 3, 3, 3), dilation=2, padding=2),
        sample(
            "dilation_and_stride",
            (1, 2, 11, 12, 13),
            (3, 2, 3, 2, 3),
            dilation=(2, 3, 4),
            stride=(3, 2, 2),
            padding=(2, 0, 3),
        ),
        sample("padding_over_input", (1, 2, 2, 1, 3), (2, 2, 3, 3, 3), padding=4),
        sample("same", (1, 2, 4, 5, 6), (3, 2, 3, 4, 2), padding="same"),
        sample("same_dilated", (1, 2, 6, 7, 8), (3, 2, 2, 3, 4), padding="same", dilation=(1, 2, 3)),
        sample("valid", (1, 2, 4, 5, 6), (3, 2, 3, 4, 2), padding="valid"),
        sample("groups", (2, 6, 4, 5, 6), (9, 2, 3, 3, 3), groups=3, padding=1),
        sample("groups_wide", (1, 34, 3, 4, 17), (36, 17, 3, 3, 3), groups=2, padding=1),
        sample("depthwise", (1, 17, 4, 5, 6), (17, 1, 3, 3, 3), groups=17, padding=1),
        sample("depthwise_stride", (2, 33, 6, 7, 8), (33, 1, 3, 3, 3), groups=33, stride=2, padding=1),
        sample("depthwise_k5", (1, 18, 4, 5, 27), (18, 1, 3, 2, 5), groups=18, padding=(1, 0, 2)),
        sample("depthwise_k7_valid", (1, 16, 3, 9, 9), (16, 1, 2, 7, 7), groups=16, stride=(1, 2, 2)),
        sample("depthwise_wide", (1, 16, 2, 3, 41), (16, 1, 3, 3, 3), groups=16, padding=1, bias=False),
        sample("depthwise_multiplier", (1, 5, 4, 5, 6), (10, 1, 3, 3, 3), groups=5, padding=1),
    ]


def winograd_samples():
    return [
        sample("c17_k33", (2, 17, 9, 10, 11), (33, 17, 3, 3, 3), padding=1),
        sample("c33_k16", (1, 33, 8, 8, 8), (16, 33, 3, 3, 3)),
        sample("one_tile", (1, 16, 2, 2, 2), (16, 16, 3, 3, 3), padding=1),
        sample("tails", (1, 16, 5, 6, 7), (32, 16, 3, 3, 3), padding=(2, 0, 1)),
        sample("no_bias", (3, 32, 6, 5, 4), (48, 32, 3, 3, 3), bias=False, padding=1),
        sample("1x3x3", (1, 32, 5, 9, 13), (32, 32, 1, 3, 3), padding=(0, 1, 1)),
        sample("3x1x1", (1, 32, 13, 5, 4), (32, 32, 3, 1, 1), padding=(1, 0, 0)),
        sample("3x3x1", (1, 32, 8, 9, 5), (32, 32, 3, 3, 1)),
        sample("3x1x3", (1, 32, 8, 3, 13), (32, 32, 3, 1, 3), padding=2),
        sample("groups", (1, 48, 8, 9, 10), (64, 24, 3, 3, 3), groups=2, padding=1),
        sample("wide", (2, 70, 5, 6, 8), (100, 70, 3, 3, 3), padding=1),
        sample("no_images", (0, 16, 8, 8, 8), (16, 16, 3, 3, 3)),
    ]


def fused_sample(name, x, w, y, activation, slopes=0, **arguments):
    """y: shape of the residual; slopes: how many prelu has."""
    shared = sample(name, x, w, activation=activation, **arguments)
    prelu = (randn(slopes, seed=4),) if slopes else ()
    return Sample(name, (*shared.inputs, randn(*y, seed=3), *prelu), shared.arguments)


def fused(x, w, bias, residual, prelu_weight=None, **arguments):
    return ops.conv3d(x, w, bias, residual=residual, prelu_weight=prelu_weight, **arguments)


def fused_with_statistics(x, w, bias, residual, prelu_weight=None, **arguments):
    return ops.conv3d_with_statistics(x, w, bias, residual=residual, prelu_weight=prelu_weight, **arguments)


def fused_reference(x, w, bias, residual, prelu_weight=None, *, activation, negative_slope=0.01, **arguments):
    z = reference(x, w, bias, **arguments) + residual
    return {
        None: lambda: z,
        "relu": lambda: F.relu(z),
        "leaky_relu": lambda: F.leaky_relu(z, negative_slope),
        "prelu": lambda: F.prelu(z, prelu_weight),
        "silu": lambda: F.silu(z),
        "gelu": lambda: F.gelu(z),
        "gelu_tanh": lambda: F.gelu(z, approximate="tanh"),
    }[activation]()


def statistics_reference(*inputs, **arguments):
    y = fused_reference(*inputs, **arguments)
    return y, y.mean((2, 3, 4)), y.var((2, 3, 4), correction=0)


def fused_samples():
    return [
        fused_sample("relu", (2, 3, 4, 5, 6), (15, 3, 3, 3, 3), (2, 15, 4, 5, 6), "relu", padding=1),
        fused_sample(
            "leaky_relu",
            (1, 2, 7, 8, 9),
            (33, 2, 3, 3, 3),
            (1, 33, 4, 4, 5),
            "leaky_relu",
            stride=2,
            padding=1,
        ),
        fused_sample(
            "negative_slope",
            (1, 4, 3, 4, 5),
            (8, 4, 1, 1, 1),
            (1, 8, 3, 4, 5),
            "leaky_relu",
            negative_slope=-0.5,
        ),
        fused_sample(
            "prelu", (1, 6, 4, 5, 6), (6, 3, 3, 3, 3), (1, 6, 4, 5, 6), "prelu", 6, groups=2, padding=1
        ),
        fused_sample("prelu_of_one", (1, 2, 3, 4, 5), (17, 2, 1, 1, 1), (1, 17, 3, 4, 5), "prelu", 1),
        fused_sample("silu", (1, 1, 4, 5, 6), (16, 1, 3, 3, 3), (1, 16, 4, 5, 6), "silu", padding=1),
        fused_sample("gelu", (1, 1, 4, 5, 6), (16, 1, 3, 3, 3), (1, 16, 4, 5, 6), "gelu", padding=1),
        fused_sample("gelu_tanh", (1, 17, 2, 3, 29), (3, 17, 1, 1, 1), (1, 3, 2, 3, 29), "gelu_tanh"),
        fused_sample(
            "depthwise", (2, 17, 4, 5, 13), (17, 1, 3, 3, 3), (2, 17, 4, 5, 13), "silu", groups=17, padding=1
        ),
        fused_sample("no_images", (0, 3, 4, 5, 6), (2, 3, 3, 3, 3), (0, 2, 4, 5, 6), "relu", padding=1),
    ]


def fused_winograd_samples():
    return [
        fused_sample("relu", (2, 17, 9, 10, 11), (33, 17, 3, 3, 3), (2, 33, 9, 10, 11), "relu", padding=1),
        fused_sample("gelu", (1, 32, 5, 9, 13), (32, 32, 1, 3, 3), (1, 32, 5, 7, 11), "gelu"),
        fused_sample(
            "prelu", (3, 48, 5, 6, 7), (64, 24, 3, 3, 3), (3, 64, 5, 6, 7), "prelu", 64, groups=2, padding=1
        ),
    ]


def loading_sample(name, x, skip, w, before="relu", before_skip=None, **arguments):
    """x and skip: shapes of the inputs. All but the skip come with scale and shift."""
    tensors = (
        randn(*x),
        randn(w[0], x[1] + skip[1], *w[1:], seed=1),
        randn(w[0], seed=2),
        randn(*skip, seed=3),
    )
    affine = (randn(*x[:2], seed=4), randn(1, x[1], seed=5))
    return Sample(
        name, (*tensors, *affine), {"input_activation": before, "skip_activation": before_skip, **arguments}
    )


def loading(x, w, bias, skip, scale, shift, **arguments):
    """Scale and shift belong to a volume in float32 also where that is in bfloat16."""
    if x.dtype == torch.bfloat16:
        scale, shift = scale.float(), shift.float()
    return ops.conv3d(x, w, bias, skip=skip, input_scale=scale, input_shift=shift, **arguments)


def loading_reference(
    x,
    w,
    bias,
    skip,
    scale,
    shift,
    *,
    input_activation,
    skip_activation,
    input_negative_slope=0.01,
    **arguments,
):
    def activated(z, name):
        slope = {"negative_slope": input_negative_slope} if name == "leaky_relu" else {}
        return z if name is None else getattr(F, name)(z, **slope)

    z = activated(x * scale[..., None, None, None] + shift[..., None, None, None], input_activation)
    return reference(torch.cat([z, activated(skip, skip_activation)], 1), w, bias, **arguments)


def loading_samples():
    return [
        loading_sample("shift_and_padding", (2, 3, 4, 5, 6), (2, 2, 4, 5, 6), (4, 3, 3, 3), padding=1),
        loading_sample("no_skip", (2, 5, 4, 5, 6), (2, 0, 4, 5, 6), (17, 3, 3, 3), padding=2),
        loading_sample(
            "first_layer", (1, 1, 4, 5, 17), (1, 2, 4, 5, 17), (16, 3, 3, 3), "leaky_relu", padding=1
        ),
        loading_sample(
            "stride",
            (1, 15, 5, 6, 7),
            (1, 18, 5, 6, 7),
            (3, 3, 3, 3),
            "leaky_relu",
            "relu",
            stride=2,
            input_negative_slope=-0.5,
        ),
        loading_sample("pointwise", (2, 4, 3, 4, 5), (2, 5, 3, 4, 5), (6, 1, 1, 1), "silu", "gelu"),
        loading_sample("affine_alone", (1, 2, 4, 5, 6), (1, 2, 4, 5, 6), (3, 2, 2, 2), None),
        loading_sample("no_images", (0, 2, 4, 5, 6), (0, 2, 4, 5, 6), (3, 2, 2, 2)),
    ]


def loading_groups(x, w, bias, skip, scale, shift, *, groups, **arguments):
    return loading(x, w[:, : w.shape[1] // groups], bias, skip, scale, shift, groups=groups, **arguments)


def loading_groups_reference(x, w, bias, skip, scale, shift, *, groups, **arguments):
    w = w[:, : w.shape[1] // groups]
    return loading_reference(x, w, bias, skip, scale, shift, groups=groups, **arguments)


def loading_groups_samples():
    """The inputs meet inside a group."""
    return [
        loading_sample("groups", (2, 7, 4, 5, 6), (2, 5, 4, 5, 6), (9, 3, 3, 3), groups=3, padding=1),
        loading_sample("depthwise", (2, 7, 4, 5, 6), (2, 5, 4, 5, 6), (12, 3, 3, 3), groups=12, padding=1),
    ]


def loading_winograd_samples():
    return [
        loading_sample("c20_c13", (2, 20, 9, 10, 11), (2, 13, 9, 10, 11), (33, 3, 3, 3), padding=1),
        loading_sample("no_skip", (1, 32, 5, 9, 13), (1, 0, 5, 9, 13), (32, 1, 3, 3), padding=(0, 1, 1)),
        loading_sample("gelu", (1, 16, 8, 8, 8), (1, 16, 8, 8, 8), (32, 3, 3, 3), "gelu", "relu"),
    ]


CASES = [
    Case(
        name="conv3d",
        function=ops.conv3d,
        reference=reference,
        samples=samples,
        precision="highest",
        # A sum of n products errs by about sqrt(n) epsilon of its largest term; here n is at most 33 * 27.
        tolerance=32,
        # The bfloat16 gradient of the output is itself rounded; sums run over all positions.
        gradient_tolerance=64,
        differentiable=(0, 1, 2),
        volumes=(0,),
    ),
    Case(
        name="conv3d_high",
        kernels="conv3d_",
        function=ops.conv3d,
        reference=reference,
        samples=samples,
        # What "high" promises: no value off by more than 1e-4 of the largest.
        tolerance=840,
        dtypes=(torch.float32, torch.bfloat16),
        differentiable=(0, 1, 2),
        volumes=(0,),
    ),
    Case(
        name="conv3d_winograd",
        kernels="conv3d_",
        function=ops.conv3d,
        reference=reference,
        samples=winograd_samples,
        # What "high" promises: no value off by more than 1e-4 of the largest.
        tolerance=840,
        differentiable=(0, 1, 2),
        volumes=(0,),
    ),
    Case(
        name="conv3d_fused",
        kernels="conv3d_f32_direct",
        function=fused,
        reference=fused_reference,
        samples=fused_samples,
        precision="highest",
        tolerance=32,
        gradient_tolerance=64,
        differentiable=(0, 1, 2, 3, 4),
        volumes=(0, 3),
    ),
    Case(
        name="conv3d_fused_high",
        kernels="conv3d_",
        function=fused_with_statistics,
        reference=statistics_reference,
        samples=fused_winograd_samples,
        tolerance=840,
        # Where an activation bends, its slope errs by as much as the sum does.
        gradient_tolerance=4 * 840,
        dtypes=(torch.float32, torch.bfloat16),
        differentiable=(0, 1, 2, 3, 4),
        volumes=(0, 3),
    ),
    Case(
        name="conv3d_with_statistics",
        kernels="conv3d_f32_direct",
        function=fused_with_statistics,
        reference=statistics_reference,
        samples=lambda: fused_samples()[:9],  # no images, no mean
        precision="highest",
        tolerance=64,
        differentiable=(0, 1, 2, 3, 4),
        volumes=(0, 3),
    ),
    Case(
        name="conv3d_loading",
        kernels="conv3d_f32_direct",
        function=loading,
        reference=loading_reference,
        samples=loading_samples,
        precision="highest",
        tolerance=32,
        gradient_tolerance=64,
        differentiable=(0, 1, 2, 3, 4, 5),
        volumes=(0, 3),
    ),
    Case(
        name="conv3d_loading_groups",
        kernels="conv3d_f32_direct",
        function=loading_groups,
        reference=loading_groups_reference,
        samples=loading_groups_samples,
        precision="highest",
        tolerance=32,
        gradient_tolerance=64,
        differentiable=(0, 1, 2, 3, 4, 5),
        volumes=(0, 3),
    ),
    Case(
        name="conv3d_loading_high",
        kernels="conv3d_",
        function=loading,
        reference=loading_reference,
        samples=loading_winograd_samples,
        tolerance=840,
        dtypes=(torch.float32, torch.bfloat16),
        differentiable=(0, 1, 2, 3, 4, 5),
        volumes=(0, 3),
    ),
]
