"""Published networks through volnet.optimize: how much of the time is on its operators, how many times
as fast as torch, and how far from float64.

    python benchmarks/published.py                 # all of tests/networks.py, in their usual widths
    python benchmarks/published.py UNet SwinUNETR

torch runs the network as its authors publish it: plain layout, float32, with a malloc that keeps its memory.
Both run in turn in one process, after a warm-up. Volumes are small: it is a table of what is covered.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from conftest import RETAINING, machine_line
from torch import nn

import volnet
from volnet.bench.networks import (
    answers,
    dynunet,
    import_torchvision,
    luna16_retinanet,
    plain_conv_unet,
    volume,
)
from volnet.bench.worker import with_statistics

ROUNDS = 5


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """What makes each, and batch, channels and spatial size of its volume; names are those of
    tests/networks.py."""
    import_torchvision()
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from monai.networks import nets
    from torchvision.models.video import mc3_18, r3d_18

    unet = (3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2))
    strides = [1, 2, 2, 2]
    groups = ("group", {"num_groups": 8})
    return {
        "UNet": (lambda: nets.UNet(*unet, num_res_units=2), (1, 1, 64, 64, 64)),
        "UNet, batch norm": (lambda: nets.UNet(*unet, num_res_units=2, norm="batch"), (1, 1, 64, 64, 64)),
        "BasicUNet": (lambda: nets.BasicUNet(3, 1, 2), (1, 1, 48, 48, 48)),
        "BasicUNet, group norm": (lambda: nets.BasicUNet(3, 1, 2, norm=groups), (1, 1, 48, 48, 48)),
        "BasicUNetPlusPlus": (lambda: nets.BasicUNetPlusPlus(3, 1, 2), (1, 1, 32, 32, 32)),
        "DynUNet": (dynunet, (1, 1, 48, 48, 48)),
        "DynUNet, residual, deep supervision": (
            lambda: nets.DynUNet(
                3,
                1,
                2,
                [3] * 4,
                strides,
                strides[1:],
                [32, 64, 128, 256],
                deep_supervision=True,
                res_block=True,
            ),
            (1, 1, 32, 32, 32),
        ),
        "AttentionUnet": (
            lambda: nets.AttentionUnet(3, 1, 2, (32, 64, 128, 256), (2, 2, 2)),
            (1, 1, 48, 48, 48),
        ),
        "SegResNet": (lambda: nets.SegResNet(3, init_filters=16), (1, 1, 48, 48, 48)),
        "SegResNetDS": (lambda: nets.SegResNetDS(3, 32), (1, 1, 32, 32, 32)),
        "SegResNetVAE": (
            lambda: nets.SegResNetVAE((32, 32, 32), spatial_dims=3, init_filters=16),
            (1, 1, 32, 32, 32),
        ),
        "VNet": (nets.VNet, (1, 1, 32, 32, 32)),
        "UNETR": (lambda: nets.UNETR(1, 2, (48, 48, 48)), (1, 1, 48, 48, 48)),
        "SwinUNETR": (lambda: nets.SwinUNETR(1, 2, feature_size=24), (1, 1, 64, 64, 64)),
        "DenseNet": (lambda: nets.DenseNet121(3, 1, 3), (1, 1, 64, 64, 64)),
        "ResNet-18": (lambda: nets.resnet18(n_input_channels=1, num_classes=3), (1, 1, 80, 80, 40)),
        "ResNet-50": (lambda: nets.resnet50(n_input_channels=1, num_classes=3), (1, 1, 64, 64, 40)),
        "SENet": (lambda: nets.SEResNet50(spatial_dims=3, in_channels=1), (1, 1, 64, 64, 64)),
        "EfficientNet-B0": (
            lambda: nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=3, in_channels=1),
            (1, 1, 96, 96, 96),
        ),
        "HighResNet": (lambda: nets.HighResNet(3, 1, 2), (1, 1, 32, 32, 32)),
        "RegUNet": (lambda: nets.RegUNet(3, 1, 16, 3, out_channels=3), (1, 1, 48, 48, 48)),
        "FlexibleUNet": (
            lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=3),
            (1, 1, 64, 64, 64),
        ),
        "MONAI RetinaNet": (luna16_retinanet, (1, 1, 64, 64, 32)),
        "PlainConvUNet": (plain_conv_unet, (1, 1, 64, 64, 32)),
        "ResidualEncoderUNet": (
            lambda: plain_conv_unet(
                ResidualEncoderUNet, n_blocks_per_stage=(1, 3, 4, 6, 6, 6), n_conv_per_stage_decoder=1
            ),
            (1, 1, 64, 64, 32),
        ),
        "torchvision r3d_18": (lambda: r3d_18(num_classes=400), (1, 3, 8, 64, 64)),
        "torchvision mc3_18": (lambda: mc3_18(num_classes=400), (1, 3, 8, 64, 64)),
    }


def row(make: Callable[[], nn.Module], size: tuple[int, ...]) -> list[str]:
    torch.manual_seed(0)
    model, x = make().eval(), volume(size[0], size[1], size[2:])
    with_statistics(model, x)
    exact = copy.deepcopy(model).double()(x.double())
    optimized = volnet.optimize(model)
    explained = volnet.explain(optimized, x)
    ours = sum(row.milliseconds for row in explained.rows if row.operator.startswith("volnet."))
    plain = model(x)
    times: dict[str, list[float]] = {"torch": [], "volnet": []}
    for _ in range(ROUNDS):
        for name, run in (("torch", model), ("volnet", optimized)):
            start = time.perf_counter()
            run(x)
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["torch"], times["volnet"], strict=True)]
    return [
        "x".join(map(str, size)),
        f"{ours / explained.milliseconds:.0%}",
        *(f"{1e3 * statistics.median(times[name]):.4g}" for name in times),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        *(f"{distance(result, exact):.1e}" for result in (plain, explained.result)),
    ]


def distance(result: object, exact: object) -> float:
    """Relative L2, the largest of all results."""
    pairs = zip(answers(result), answers(exact), strict=True)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    wanted = parser.parse_args().networks
    known = networks()
    if set(wanted) - set(known):
        parser.error(f"the networks are {', '.join(known)}")
    head = ["network", "volume", "on volnet's operators", "torch, ms", "volnet, ms", "torch / volnet"]
    head += ["torch to float64", "volnet to float64"]
    print(f"{machine_line()}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name in wanted or known:
        print(f"| {' | '.join([name, *row(*known[name])])} |", flush=True)
        torch._dynamo.reset()


if __name__ == "__main__":
    if os.environ.get("GLIBC_TUNABLES") != RETAINING:
        os.environ["GLIBC_TUNABLES"] = RETAINING
        os.execv(sys.executable, sys.orig_argv)
    warnings.simplefilter("ignore")  # Dynamo's and the networks' own
    with torch.no_grad():
        main()
