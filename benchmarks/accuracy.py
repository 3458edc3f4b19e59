"""How far convolutions are from float64: relative L2 error, and the largest error over the largest value.

    python benchmarks/accuracy.py

The worst of standard normal, rectified, offset and smooth volumes, and of weights that are all positive;
float32, 3x3x3, a column for each way of computing it that this machine has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

import volnet
from volnet import isa, ops

CHANNELS = (32, 64, 128, 256, 320)
SIDE = 16


def volumes(channels: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, *[SIDE] * 3, generator=generator)
    w = torch.randn(channels, channels, 3, 3, 3, generator=generator)
    smooth = F.avg_pool3d(F.pad(x, [2] * 6), 5, stride=1)
    yield from ((x, w), (x.relu(), w), (x + 3, w), (smooth, w), (x, w.abs()), (x + 3, w.abs()))


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = volnet.get_precision()
    volnet.set_precision(name)
    try:
        yield
    finally:
        volnet.set_precision(before)


def ways() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    def at(level: str, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, w: Tensor) -> Tensor:
            with isa.limit(level), precision(name):
                return ops.conv3d(x, w, padding=1)

        return run

    levels = [level for level in ("avx512", "amx") if level in isa.available()] or [isa.active()]
    found = {f"`high`, {level}": at(level, "high") for level in levels}
    return found | {"`highest`": at(isa.active(), "highest"), "torch": lambda x, w: F.conv3d(x, w, padding=1)}


def main() -> None:
    print(f"| channels | {' | '.join(ways())} |\n|{' --- |' * (len(ways()) + 1)}")
    for channels in CHANNELS:
        worst = {name: (0.0, 0.0) for name in ways()}
        for x, w in volumes(channels):
            expected = F.conv3d(x.double(), w.double(), padding=1)
            for name, run in ways().items():
                error = run(x, w).double() - expected
                relative = float(error.norm() / expected.norm())
                largest = float(error.abs().max() / expected.abs().max())
                worst[name] = (max(worst[name][0], relative), max(worst[name][1], largest))
        print(f"| {channels} | {' | '.join(f'{a:.1e}, {b:.1e}' for a, b in worst.values())} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
