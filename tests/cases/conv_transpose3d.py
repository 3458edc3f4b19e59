from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import Case, Sample, randn
from volnet import ops


def sample(name, x, w, bias=True, **arguments):
    """x: shape of the input; w: shape of the weight [C, K / groups, kd, kh, kw]."""
    filters = w[1] * arguments.get("groups", 1)
    tensors = (randn(*x), randn(*w, seed=1), *([randn(filters, seed=2)] if bias else []))
    return Sample(name, tensors, arguments)


def samples():
    return [
        sample("one_voxel", (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
        sample("one_voxel_c3_k4", (1, 3, 1, 1, 1), (3, 4, 1, 1, 1)),
        sample("no_images", (0, 3, 4, 5, 6), (3, 2, 2, 2, 2), stride=2),
        sample("up2", (1, 16, 3, 4, 5), (16, 16, 2, 2, 2), stride=2),
        sample("up2_c3_k15", (2, 3, 4, 5, 6), (3, 15, 2, 2, 2), stride=2),
        sample("up2_c15_k17", (1, 15, 3, 4, 15), (15, 17, 2, 2, 2), stride=2),
        # No bias: the contract weighs the outputs from -1 to 1, so that its gradient would be nothing but
        # rounding.
        sample("up2_c33_k1", (1, 33, 2, 3, 17), (33, 1, 2, 2, 2), bias=False, stride=2),
        sample("up2_c1_k33", (1, 1, 3, 4, 5), (1, 33, 2, 2, 2), stride=2),
        sample("up2_no_bias", (1, 4, 3, 4, 5), (4, 8, 2, 2, 2), bias=False, stride=2),
        sample("up_anisotropic", (1, 4, 3, 4, 5), (4, 6, 1, 2, 2), stride=(1, 2, 2)),
        sample("k3_stride1", (1, 4, 4, 5, 6), (4, 5, 3, 3, 3), padding=1),
        sample("k3_stride2", (1, 5, 3, 4, 5), (5, 6, 3, 3, 3), stride=2, padding=1, output_padding=1),
        sample("k4_stride2", (1, 3, 3, 4, 5), (3, 4, 4, 4, 4), stride=2, padding=1),
        sample("k3_cropped_unevenly", (1, 2, 4, 5, 6), (2, 3, 3, 2, 4), stride=(2, 1, 3), padding=(0, 1, 2)),
        sample("pointwise", (1, 16, 3, 4, 5), (16, 20, 1, 1, 1)),
        sample("stride_over_kernel", (2, 2, 2, 3, 2), (2, 3, 2, 1, 2), stride=(3, 4, 5), padding=(0, 0, 1)),
        sample("output_padding_each", (1, 3, 3, 3, 4), (3, 2, 2, 3, 2), stride=3, output_padding=(2, 1, 0)),
        sample("dilation2", (1, 4, 4, 3, 5), (4, 4, 3, 3, 3), dilation=2, padding=1),
        sample(
            "dilation_and_stride",
            (1, 2, 3, 4, 3),
            (2, 3, 3, 2, 3),
            dilation=(2, 3, 4),
            stride=(3, 2, 2),
            padding=(2, 0, 3),
            output_padding=(1, 1, 0),
        ),
        sample(
            "output_padding_over_stride",
            (1, 2, 3, 4, 3),
            (2, 3, 2, 2, 2),
            dilation=4,
            stride=(1, 2, 3),
            padding=(0, 0, 1),
            output_padding=3,
        ),
        sample("padding_over_input", (1, 2, 2, 1, 2), (2, 2, 3, 5, 4), stride=2, padding=(1, 2, 2)),
        sample("groups", (2, 6, 3, 4, 5), (6, 3, 2, 2, 2), groups=3, stride=2),
        sample("groups_wide", (1, 34, 2, 3, 5), (34, 18, 3, 3, 3), groups=2, padding=1),
        sample("depthwise", (1, 17, 3, 4, 5), (17, 1, 2, 2, 2), groups=17, stride=2),
        sample("depthwise_k3", (2, 33, 3, 4, 5), (33, 1, 3, 3, 3), groups=33, stride=2, padding=1),
        sample("depthwise_multiplier", (1, 5, 3, 4, 5), (5, 2, 3, 3, 3), groups=5, padding=1),
    ]


def fused_sample(name, x, w, y, activation, slopes=0, **arguments):
    """y: shape of the residual; slopes: how many prelu has."""
    shared = sample(name, x, w, activation=activation, **arguments)
    prelu = (randn(slopes, seed=4),) if slopes else ()
    return Sample(name, (*shared.inputs, randn(*y, seed=3), *prelu), shared.arguments)


def fused(x, w, bias, residual, prelu_weight=None, **arguments):
    return ops.conv_transpose3d(x, w, bias, residual=residual, prelu_weight=prelu_weight, **arguments)


def fused_reference(x, w, bias, residual, prelu_weight=None, *, activation, **arguments):
    z = F.conv_transpose3d(x, w, bias, **arguments) + residual
    return getattr(F, activation)(z, *([] if prelu_weight is None else [prelu_weight]))


def fused_samples():
    return [
        fused_sample("relu", (2, 3, 3, 4, 5), (3, 17, 2, 2, 2), (2, 17, 6, 8, 10), "relu", stride=2),
        fused_sample("gelu", (1, 6, 3, 4, 5), (6, 3, 3, 3, 3), (1, 6, 3, 4, 5), "gelu", groups=2, padding=1),
        # Every third voxel on an axis is beyond the kernel: there the sum is the bias.
        fused_sample("prelu", (1, 2, 2, 3, 4), (2, 3, 2, 2, 2), (1, 3, 5, 8, 11), "prelu", 3, stride=3),
        fused_sample(
            "depthwise",
            (1, 9, 3, 4, 5),
            (9, 1, 3, 3, 3),
            (1, 9, 5, 7, 9),
            "leaky_relu",
            groups=9,
            stride=2,
            padding=1,
        ),
    ]


CASES = [
    Case(
        name="conv_transpose3d",
        function=ops.conv_transpose3d,
        reference=F.conv_transpose3d,
        samples=samples,
        precision="highest",
        # A sum of n products errs by about sqrt(n) epsilon of its largest term; here n is at most 17 * 27.
        tolerance=32,
        # The bfloat16 gradient of the output is itself rounded; sums run over all positions.
        gradient_tolerance=64,
        differentiable=(0, 1, 2),
        volumes=(0,),
        kernels="conv3d_",
    ),
    Case(
        name="conv_transpose3d_high",
        function=ops.conv_transpose3d,
        reference=F.conv_transpose3d,
        samples=samples,
        # What "high" promises: no value off by more than 1e-4 of the largest.
        tolerance=840,
        dtypes=(torch.float32, torch.bfloat16),
        differentiable=(0, 1, 2),
        volumes=(0,),
        kernels="conv3d_",
    ),
    Case(
        name="conv_transpose3d_fused",
        function=fused,
        reference=fused_reference,
        samples=fused_samples,
        tolerance=840,
        differentiable=(0, 1, 2, 3, 4),
        volumes=(0, 3),
        kernels="conv3d_",
    ),
]
