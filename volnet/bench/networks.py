"""Networks to measure: published ones by name, and any that the user names."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["NETWORKS", "Network", "answers", "import_torchvision", "make", "volume"]


@dataclass(frozen=True)
class Network:
    """A network and the volume it is measured with.

    Attributes:
        size: channels and spatial size.
        check: spatial size of the volume for the comparison with float64, which takes far longer and more
            memory.
    """

    name: str
    factory: Callable[[], nn.Module]
    size: tuple[int, ...]
    check: tuple[int, ...]


def dynunet() -> nn.Module:
    import_torchvision()
    from monai.networks.nets import DynUNet

    strides = [1, 2, 2, 2, 2]
    return DynUNet(3, 1, 3, [3] * 5, strides, strides[1:], filters=[32, 64, 128, 256, 320])


def plain_conv_unet(kind: Any = None, **blocks: Any) -> nn.Module:
    """nnU-Net's 3d_fullres; or its other networks, which have the same stages but other blocks in them."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    options: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 6,
        "features_per_stage": (32, 64, 128, 256, 320, 320),
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1, 2, 2, 2, 2, 2),
        "num_classes": 3,
        "n_conv_per_stage_decoder": 2,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    network: nn.Module = (kind or PlainConvUNet)(**options | (blocks or {"n_conv_per_stage": 2}))
    return network


def basic_unet() -> nn.Module:
    import_torchvision()
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 2)


def resnet50() -> nn.Module:
    import_torchvision()
    from monai.networks.nets import resnet50

    return resnet50(n_input_channels=1, num_classes=2)


def luna16_retinanet() -> nn.Module:
    """MONAI's bundle lung_nodule_ct_detection."""
    import_torchvision()
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets import resnet50

    backbone = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_size=7, conv1_t_stride=(2, 2, 1))
    extractor = resnet_fpn_feature_extractor(backbone, 3, False, [1, 2], None)
    return RetinaNet(3, 1, 3, extractor, size_divisible=(16, 16, 8))


NETWORKS = {
    network.name: network
    for network in (
        Network("dynunet", dynunet, (1, 128, 128, 128), (64, 64, 64)),
        Network("plain_conv_unet", plain_conv_unet, (1, 128, 128, 128), (64, 64, 64)),
        Network("basic_unet", basic_unet, (1, 96, 96, 96), (48, 48, 48)),
        Network("resnet50", resnet50, (1, 160, 160, 80), (80, 80, 40)),
        Network("luna16_retinanet", luna16_retinanet, (1, 192, 192, 80), (96, 96, 40)),
    )
}


def import_torchvision() -> None:
    """Lets MONAI's detectors be imported beside a torchvision that was built for another torch (for CUDA,
    most of all): its operators are missing then, but have to be declared. None of the networks runs them.
    Before MONAI is imported, which looks for torchvision once."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


def make(name: str, size: tuple[int, ...] | None = None, check: tuple[int, ...] | None = None) -> Network:
    """A network of :data:`NETWORKS`, or ``module.path:factory`` or ``file.py:factory``.

    Args:
        name: of the network; a factory takes no argument and returns a module.
        size: channels and spatial size, in place of the published network's.
        check: spatial size of the volume that is compared with float64; by default the network's own, or half
            of ``size``.

    Raises:
        ValueError: there is no such network, or it needs a size.
    """
    where, colon, attribute = name.rpartition(":")
    if name in NETWORKS:
        if size is None:
            return replace(NETWORKS[name], check=check or NETWORKS[name].check)
        factory: Any = NETWORKS[name].factory
    elif colon:
        if size is None:
            raise ValueError(f"{name} needs the size of its volume: channels and spatial size")
        try:
            factory = getattr(_module(where), attribute)
        except (ImportError, AttributeError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
    else:
        raise ValueError(
            f"{name} is neither module:factory, file.py:factory nor one of {', '.join(NETWORKS)}"
        )
    return Network(name, factory, size, check or tuple(n // 2 for n in size[1:]))


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def volume(batch: int, channels: int, size: tuple[int, ...]) -> Tensor:
    """Smooth and positive, like a CT that was scaled to 0..1, with noise; the same in every process."""
    generator = torch.Generator().manual_seed(math.prod(size) + batch)
    coarse = torch.rand(batch, channels, *(max(n // 4, 1) for n in size), generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="trilinear" if len(size) == 3 else "nearest")
    return smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


def answers(result: Any) -> list[Tensor]:
    """What a network gives as a list of tensors, in an order that every runtime keeps."""
    leaves = tree_leaves(result)
    return [torch.as_tensor(leaf) for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray))]
