"""Training over processes and hosts: a plain loop that torchrun starts, and starts again.

    torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/distributed_train.py --out run
    torchrun --standalone --nproc-per-node 4 examples/distributed_train.py --out run --spatial 2

Every step trains on a batch of made volumes, divided over the ranks; with --spatial N, N neighbouring ranks
share a volume, in slabs along D. When a rank dies torchrun ends the others and starts all again; they go on
from the last checkpoint, to the same weights. examples/slurm_train.sh starts it on a cluster.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import volnet
from volnet.train.distributed import (
    cleanup,
    data_parallel,
    init,
    mesh,
    ranks,
    shard,
    spatial_parallel,
    sum_over_ranks,
)


def network() -> nn.Module:
    torch.manual_seed(0)

    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
        convolution = nn.Conv3d(inputs, outputs, 3, stride, 1)
        return nn.Sequential(convolution, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU())

    up = nn.ConvTranspose3d(16, 8, 2, 2)
    return nn.Sequential(block(1, 8), block(8, 16, 2), block(16, 16), up, block(8, 8), nn.Conv3d(8, 1, 1))


def volumes(step: int, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """[batch, 1, side, side, side] noise, and where it is high when smoothed. The same on all ranks."""
    x = torch.randn(batch, 1, side, side, side, generator=torch.Generator().manual_seed(step))
    return x, (nn.functional.avg_pool3d(x, 3, 1, 1) > 0.1).float()


def save(path: Path, state: dict[str, Any]) -> None:
    """Aside and renamed: the last one is there whenever a process dies."""
    aside = path.with_suffix(".partial")
    torch.save(state, aside)
    os.replace(aside, path)


def load(path: Path) -> dict[str, Any] | None:
    """What the first rank has saved, on all ranks: a host needs not see the disk of another."""
    found = [torch.load(path, weights_only=True) if ranks().is_main and path.exists() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def train(out: Path, steps: int, batch: int, side: int, spatial: int, precision: str) -> None:
    me = init()
    model = network()
    split: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    data_rank, data_size, voxels, slabs = me.rank, me.size, None, 1
    run: nn.Module
    if spatial > 1:
        groups = mesh(me.size // spatial, spatial)
        parallel = spatial_parallel(model, groups["spatial"].get_group(), precision=precision)
        data_rank, data_size = groups["data"].get_local_rank(), groups["data"].size()
        run, split, voxels, slabs = parallel, parallel.split, groups["spatial"].get_group(), spatial
    else:
        run = volnet.optimize(model, precision=precision)
    if me.size > 1:
        run = data_parallel(run)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

    first = 0
    state = load(out / "checkpoint.pt")
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        x, target = volumes(step, batch, side)
        mine, share = shard(range(batch), data_rank, data_size)
        x, target = split(x[mine]), split(target[mine])
        optimizer.zero_grad()
        y = run(x)
        # The mean over all voxels of this rank's volumes: of the slabs of all ranks that share them.
        loss = nn.functional.binary_cross_entropy_with_logits(y, target, reduction="sum")
        count = len(mine) * side**3
        loss = (loss if slabs == 1 else sum_over_ranks(loss, voxels)) / count * share
        loss.backward()
        optimizer.step()
        if me.is_main:
            if step % 10 == 0:
                print(f"step {step}, loss {loss.item():.4f}, restarts {me.restarts}", flush=True)
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save(out / "checkpoint.pt", saved)
    cleanup()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=4, help="volumes a step, over all ranks")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--spatial", type=int, default=1, help="ranks that share a volume")
    parser.add_argument("--precision", default="high", help="of the convolutions")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    train(given.out, given.steps, given.batch, given.side, given.spatial, given.precision)


if __name__ == "__main__":
    main()
