"""Published 3-D networks with random weights and odd sizes: data for tests/test_optimize.py.

A case is a name, what makes the network, and the shape of its input. Small widths: it is the structure that
is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.networks import nets
from torch import nn
from torchvision.models.video import mc3_18, r3d_18


@dataclass(frozen=True)
class Network:
    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, ...]


def retinanet() -> nn.Module:
    backbone = nets.resnet10(spatial_dims=3, n_input_channels=1, conv1_t_size=7, conv1_t_stride=(2, 2, 1))
    extractor = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
    return RetinaNet(3, 1, 3, extractor, size_divisible=(16, 16, 8))


def plain_conv_unet(kind: type[nn.Module], blocks: str) -> nn.Module:
    return kind(
        input_channels=1,
        n_stages=4,
        features_per_stage=(8, 16, 24, 24),
        conv_op=nn.Conv3d,
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
        num_classes=3,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **{blocks: 2},
    )


NETWORKS = [
    Network("UNet", lambda: nets.UNet(3, 1, 2, (8, 12, 16), (2, 2), num_res_units=1), (1, 1, 24, 20, 28)),
    Network("UNet, batch norm", lambda: nets.UNet(3, 2, 2, (8, 16), (2,), norm="batch"), (2, 2, 10, 12, 14)),
    Network("BasicUNet", lambda: nets.BasicUNet(3, 1, 2, (8, 8, 12, 16, 24, 8)), (1, 1, 32, 35, 41)),
    Network(
        "BasicUNet, group norm",
        lambda: nets.BasicUNet(3, 1, 2, (8, 8, 12, 16, 24, 8), norm=("group", {"num_groups": 4})),
        (1, 1, 32, 32, 33),
    ),
    Network(
        "BasicUNetPlusPlus",
        lambda: nets.BasicUNetPlusPlus(3, 1, 2, (8, 8, 12, 16, 24, 8)),
        (1, 1, 32, 32, 32),
    ),
    Network(
        "DynUNet",
        lambda: nets.DynUNet(
            3, 1, 2, [3, 3, 3, 3], [1, 2, 2, (1, 2, 2)], [2, 2, (1, 2, 2)], filters=[8, 12, 16, 17]
        ),
        (1, 1, 20, 24, 40),
    ),
    Network(
        "DynUNet, residual, deep supervision",
        lambda: nets.DynUNet(
            3, 2, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, [8, 12, 16, 17], deep_supervision=True, res_block=True
        ),
        (2, 2, 24, 16, 8),
    ),
    Network("AttentionUnet", lambda: nets.AttentionUnet(3, 1, 2, (8, 12, 16), (2, 2)), (1, 1, 20, 24, 28)),
    Network("SegResNet", lambda: nets.SegResNet(3, init_filters=8), (1, 1, 24, 16, 32)),
    Network("SegResNetDS", lambda: nets.SegResNetDS(3, 8), (1, 1, 32, 32, 16)),
    Network(
        "SegResNetVAE",
        lambda: nets.SegResNetVAE((32, 16, 16), spatial_dims=3, init_filters=8),
        (1, 1, 32, 16, 16),
    ),
    Network("VNet", lambda: nets.VNet(dropout_prob_down=0.5), (1, 1, 16, 32, 16)),
    Network("UNETR", lambda: nets.UNETR(1, 2, (32, 16, 16), 8, 24, 32, 4), (1, 1, 32, 16, 16)),
    Network("SwinUNETR", lambda: nets.SwinUNETR(1, 2, feature_size=12), (1, 1, 64, 32, 32)),
    Network("DenseNet", lambda: nets.DenseNet(3, 1, 3, 8, 8, (2, 3)), (1, 1, 33, 35, 30)),
    Network("ResNet-18", lambda: nets.resnet18(n_input_channels=1, num_classes=3), (1, 1, 37, 33, 41)),
    Network(
        "ResNet-50",
        lambda: nets.resnet50(n_input_channels=1, num_classes=3, widen_factor=0.125),
        (1, 1, 37, 33, 41),
    ),
    Network(
        "SENet",
        lambda: nets.SENet(3, 1, "se_resnet_bottleneck", (1, 2, 1, 1), 1, 4, num_classes=3),
        (1, 1, 35, 33, 37),
    ),
    Network(
        "EfficientNet-B0",
        lambda: nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=3, in_channels=1),
        (1, 1, 33, 40, 36),
    ),
    Network("HighResNet", lambda: nets.HighResNet(3, 1, 2), (1, 1, 17, 20, 18)),
    Network("RegUNet", lambda: nets.RegUNet(3, 1, 8, 2, out_channels=3), (1, 1, 16, 24, 32)),
    Network(
        "FlexibleUNet", lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=3), (1, 1, 32, 32, 64)
    ),
    Network("MONAI RetinaNet", retinanet, (1, 1, 48, 32, 40)),
    Network("PlainConvUNet", lambda: plain_conv_unet(PlainConvUNet, "n_conv_per_stage"), (1, 1, 8, 40, 32)),
    Network(
        "ResidualEncoderUNet",
        lambda: plain_conv_unet(ResidualEncoderUNet, "n_blocks_per_stage"),
        (1, 1, 8, 40, 32),
    ),
    Network("torchvision r3d_18", lambda: r3d_18(num_classes=5), (1, 3, 8, 33, 37)),
    Network("torchvision mc3_18", lambda: mc3_18(num_classes=5), (1, 3, 8, 33, 37)),
]


def volume(size: tuple[int, ...]) -> torch.Tensor:
    """Smooth and positive, like a CT that was scaled to 0..1, with noise."""
    coarse = torch.rand(size[0], size[1], *(max(n // 4, 1) for n in size[2:]))
    smooth = nn.functional.interpolate(coarse, size[2:], mode="trilinear")
    return smooth + 0.1 * torch.randn(size)
