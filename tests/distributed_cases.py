"""What tests/test_distributed.py runs in several processes: data for both sides.

A case is what makes the network and the shape of the whole input. Every rank runs all of them and writes down
how far it is from one process in float64.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Case = tuple[Callable[[], nn.Module], tuple[int, ...]]


class Squeeze(nn.Module):
    """Channels scaled by what the whole volume says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        return x * torch.sigmoid(self.second(F.adaptive_avg_pool3d(x, 1)))


class Classes(nn.Module):
    """A result that is no volume."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv3d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3, 4)))


class UNet(nn.Module):
    """Three levels, residual, a transposed convolution on one and an interpolation on the other."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv3d(1, 4, 3, 1, 1), nn.Conv3d(4, 6, 3, 2, 1), nn.Conv3d(6, 8, 3, 2, 1)]
        )
        self.same = nn.ModuleList([nn.Conv3d(c, c, 3, 1, 1) for c in (4, 6, 8)])
        self.norms = nn.ModuleList([norm(c) for c in (4, 6, 8)])
        self.up = nn.ConvTranspose3d(8, 6, 2, 2)
        self.middle = nn.Conv3d(12, 6, 3, padding=1)
        self.last = nn.Conv3d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for down, same, norm in zip(self.down, self.same, self.norms, strict=True):
            x = down(x)
            x = F.leaky_relu(norm(same(x) + x), 0.1)
            levels.append(x)
        x = self.middle(torch.cat([self.up(levels[2]), levels[1]], 1))
        x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
        return self.last(torch.cat([x, levels[0]], 1))


def layers(*more: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), *copy.deepcopy(more), nn.Conv3d(4, 2, 1))


CASES: dict[str, Case] = {
    "stride 2": (layers(nn.Conv3d(4, 4, 3, 2, 1)), (1, 1, 17, 6, 7)),
    "stride 3, kernel 5": (layers(nn.Conv3d(4, 4, 5, 3, 2)), (1, 1, 22, 9, 8)),
    "dilation, no padding": (layers(nn.Conv3d(4, 4, 3, dilation=2)), (2, 1, 16, 8, 9)),
    "same, even kernel": (layers(nn.Conv3d(4, 4, 4, padding="same", groups=2)), (1, 1, 13, 6, 7)),
    "transposed": (layers(nn.ConvTranspose3d(4, 4, 3, 2, 1, 1), nn.ReLU()), (1, 1, 11, 5, 6)),
    "transposed, gaps": (layers(nn.ConvTranspose3d(4, 4, 2, 3, 0, 1)), (1, 1, 9, 4, 5)),
    "max pool": (layers(nn.MaxPool3d(3, 2, 1)), (1, 1, 18, 6, 8)),
    "mean pool": (layers(nn.AvgPool3d(2)), (2, 1, 19, 6, 8)),
    "nearest": (layers(nn.Upsample(scale_factor=1.5)), (1, 1, 14, 5, 6)),
    "trilinear": (layers(nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)), (1, 1, 9, 5, 6)),
    "replicated planes": (layers(nn.ReplicationPad3d((1, 1, 1, 1, 2, 1))), (1, 1, 12, 5, 6)),
    "instance norm": (layers(nn.InstanceNorm3d(4, affine=True), nn.SiLU()), (2, 1, 13, 6, 7)),
    "group norm": (layers(nn.GroupNorm(2, 4), nn.PReLU(4)), (2, 1, 13, 6, 7)),
    "batch norm": (layers(nn.BatchNorm3d(4), nn.ReLU()), (2, 1, 13, 6, 7)),
    "squeeze": (Squeeze, (2, 1, 12, 6, 7)),
    "classes": (Classes, (2, 1, 13, 7, 9)),
    "U-Net, instance norm": (lambda: UNet(lambda c: nn.InstanceNorm3d(c, affine=True)), (2, 1, 20, 8, 12)),
    "U-Net, slabs without planes": (lambda: UNet(nn.BatchNorm3d), (1, 1, 8, 8, 12)),
}


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of all of them together: that of a bias before a norm is zero, and has no error of its own."""
    found_, expected_ = (torch.cat([t.detach().double().flatten() for t in ts]) for ts in (found, expected))
    return float((found_ - expected_).norm() / expected_.norm())


def one_case(make: Callable[[], nn.Module], shape: tuple[int, ...], multiple: int) -> dict[str, float]:
    from volnet.train.distributed import data_parallel, spatial_parallel

    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    for layer in model.modules():  # those of the table were made before the seed was set
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            layer.reset_parameters()
    single = copy.deepcopy(model).double()
    whole = x.double().requires_grad_()
    expected = single(whole)
    target = torch.randn(expected.shape)
    loss = (expected - target).square().mean()
    loss.backward()

    parallel = spatial_parallel(model, precision="highest")
    trained = data_parallel(parallel)
    slab = parallel.split(x, multiple).clone().requires_grad_()
    y = trained(slab)
    if y.dim() == 5:
        lo, hi = parallel.owned(target.shape[2])
        found = parallel.mean((y - target[:, :, lo:hi]).square())
        y = parallel.gather(y)
    else:
        found = (y - target).square().mean()
    found.backward()
    grads = [p.grad for p in model.parameters()], [p.grad for p in single.parameters()]
    errors = {
        "loss": abs(found.item() / loss.item() - 1),
        "result": relative([y], [expected]),
        "gradients": relative(*grads),
        "input gradient": relative([parallel.gather(slab.grad)], [whole.grad]),
    }
    buffers = [list(m.buffers()) for m in (model, single)]
    if buffers[0]:
        errors["buffers"] = relative(*buffers)
    return errors


# With four ranks, some in the middle and some without planes of the coarse levels.
FOUR = (
    "stride 3, kernel 5",
    "transposed, gaps",
    "classes",
    "U-Net, instance norm",
    "U-Net, slabs without planes",
)


def spatial(rank: int, size: int) -> dict[str, Any]:
    return {name: one_case(*CASES[name], 4) for name in (CASES if size == 2 else FOUR)}


class Plain(nn.Module):
    """A U-Net of modules alone, for the formula of the halo."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, 2, 1)
        self.wide, self.pool = nn.Conv3d(6, 6, 3, padding=2, dilation=2), nn.MaxPool3d(2)
        self.grow, self.up = nn.Upsample(scale_factor=2, mode="trilinear"), nn.ConvTranspose3d(6, 4, 2, 2)
        self.norm, self.last = nn.InstanceNorm3d(6), nn.Conv3d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.norm(self.down(self.first(x))))
        return self.last(self.up(self.grow(self.pool(x))))


def halo(rank: int, size: int) -> list[int]:
    """Bytes sent in a step, forward and backward, over one cut and both directions."""
    from volnet.train.distributed import spatial_parallel

    model = Plain()
    parallel = spatial_parallel(model)
    parallel(parallel.split(torch.randn(2, 1, 24, 8, 12), 4)).sum().backward()
    return [parallel.traffic.forward, parallel.traffic.backward]


def train(
    model: nn.Module, step: Callable[[Tensor, Tensor], Tensor], batches: list[list[int]]
) -> list[Tensor]:
    """The weights after a step for each batch; ``step`` has the loss of what it is given."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 1, 8, 8, 8, generator=generator), torch.randn(6, 1, 8, 8, 8, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        step(x[batch], y[batch]).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


BATCHES = [[0, 1, 2, 3], [4, 5, 0], [2], [5, 3]]  # some cannot be divided by two


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1)
    )


def single_weights() -> list[Tensor]:
    model = small().double()
    return train(model, lambda x, y: (model(x.double()) - y).square().mean(), BATCHES)


def batches(rank: int, size: int) -> float:
    """An optimized network over ranks that get different numbers of samples."""
    import volnet
    from volnet.train.distributed import data_parallel, shard

    model = small(rank)  # the first rank's weights go to all
    parallel = data_parallel(volnet.optimize(model, precision="highest"))

    def step(x: Tensor, y: Tensor) -> Tensor:
        mine, share = shard(range(len(x)), rank, size)
        return (parallel(x[mine]) - y[mine]).square().mean() * share

    return relative(train(model, step, BATCHES), single_weights())


def both(rank: int, size: int) -> float:
    """Two volumes at a time, two slabs each."""
    from volnet.train.distributed import data_parallel, mesh, shard, spatial_parallel

    ranks = mesh(2, size // 2)
    model = small(rank)
    slabs = spatial_parallel(model, ranks["spatial"].get_group(), precision="highest")
    parallel = data_parallel(slabs)

    def step(x: Tensor, y: Tensor) -> Tensor:
        mine, share = shard(range(len(x)), ranks["data"].get_local_rank(), 2)
        found = parallel(slabs.split(x[mine]))
        return slabs.mean((found - slabs.split(y[mine])).square()) * share

    return relative(train(model, step, BATCHES), single_weights())


def refusals(rank: int, size: int) -> list[str]:
    """What is said of what cannot be done."""
    from volnet.train.distributed import mesh, spatial_parallel

    x = torch.zeros(1, 1, 8, 4, 4)
    tries: list[Callable[[], Any]] = [
        lambda: spatial_parallel(nn.Sequential(nn.Conv3d(1, 1, 1), nn.Flatten(2)))(x),
        lambda: spatial_parallel(nn.Conv3d(1, 1, 1)).split(x[:, :, :1]),
        lambda: spatial_parallel(nn.Conv3d(1, 1, 1))(x[0]),
        lambda: mesh(3, size),
    ]
    said = []
    for one in tries:
        try:
            one()
        except (NotImplementedError, ValueError, RuntimeError) as error:
            said.append(str(error))
    return said


def run(rank: int, size: int, folder: str, what: str) -> None:
    """A process: runs functions of this module, and writes down what they say."""
    from volnet.train.distributed import cleanup

    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}/store", rank=rank, world_size=size, timeout=timedelta(seconds=100)
    )
    result = {name: globals()[name](rank, size) for name in what.split()}
    (path / f"{rank}.json").write_text(json.dumps(result))
    cleanup()
