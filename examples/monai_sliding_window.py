"""MONAI's sliding_window_inference, and the same in two lines of volnet.

    python examples/monai_sliding_window.py --size 160 192 192 --window 96

A BasicUNet with random weights goes over a volume that stands for a CT; printed are both times and how far
the results are apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from torch import Tensor

import volnet


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=3, default=(128, 128, 128), help="of the volume")
    parser.add_argument("--window", type=int, default=96, help="edge of a window, at least 32")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = BasicUNet(spatial_dims=3, in_channels=1, out_channels=2).eval()
    ct = torch.full((1, 1, *args.size), -1000.0)  # air
    depth, height, width = args.size
    inside = ct[..., : depth // 2, height // 4 :, : width // 2]
    inside.copy_(50 * torch.randn(inside.shape))
    window = (args.window,) * 3

    with torch.inference_mode():
        expected, before = timed(
            lambda: sliding_window_inference(ct, window, 1, model, overlap=0.5, mode="gaussian")
        )

        fast = volnet.optimize(model, torch.zeros(1, 1, *window))
        result, after = timed(
            lambda: volnet.sliding_window(ct, window, 1, fast, overlap=0.5, mode="gaussian")
        )

        _, skipping = timed(
            lambda: volnet.sliding_window(ct, window, 1, fast, overlap=0.5, mode="gaussian", skip=-900)
        )

    difference = float((result - expected).norm() / expected.norm())
    print(f"MONAI and torch: {before:.2f} s")
    print(f"volnet: {after:.2f} s, {before / after:.1f} times as fast; relative difference {difference:.1e}")
    print(f"volnet, air left out: {skipping:.2f} s")


if __name__ == "__main__":
    main()
