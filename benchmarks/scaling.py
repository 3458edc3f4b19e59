"""How training scales to many nodes: a model, from what is measured here and what a link is said to do.

    python benchmarks/scaling.py --speed 20                 # the tables of docs/scaling.md
    python benchmarks/scaling.py --seconds 1.7 --speed 20   # a step measured before, nodes 20 times as fast
    python benchmarks/scaling.py --link 25 --latency 10     # another network: Gbit/s, microseconds

The time of a step on one node is measured on a small volume and scaled by the voxels. What ranks send is
counted layer by layer on shapes alone (`halo_bytes`, which tests/test_distributed.py holds against what is
really sent). The rest is arithmetic, in `spatial_step` and `data_step`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NODES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Link:
    """Between two nodes, in each direction."""

    name: str
    gbit_per_second: float
    latency: float  # seconds until a message arrives, with gloo's part in it
    efficiency: float  # share of the link's speed that messages of a megabyte see

    def seconds(self, nbytes: float, messages: int = 1) -> float:
        return messages * self.latency + nbytes * 8 / (self.gbit_per_second * 1e9 * self.efficiency)


LINKS = (
    Link("10 Gbit/s Ethernet, gloo", 10, 50e-6, 0.7),
    Link("100 Gbit/s InfiniBand, IP over IB, gloo", 100, 30e-6, 0.4),
    Link("100 Gbit/s InfiniBand, MPI or oneCCL", 100, 3e-6, 0.85),
)


@dataclass(frozen=True)
class Layer:
    """What a layer computes, and needs of its neighbours."""

    name: str
    depth: int  # planes of its result
    flop: float
    halo: int  # planes at a cut, both directions together
    plane_bytes: int  # of its input
    has_gradient: bool  # its input is not the network's


def layers_of(model: nn.Module, shape: Sequence[int], itemsize: int = 4) -> list[Layer]:
    """Convolutions, pooling and upsampling, when cuts are multiples of the strides at every level.

    A convolution of ``reach = dilation * (kernel - 1) + 1`` planes and stride s needs ``reach - s`` planes at
    a cut, one that pools or upsamples by its kernel none, trilinear upsampling two.

    Args:
        model: layers are modules; it runs on shapes alone.
        shape: [N, C, D, H, W] of the whole volume.
    """
    found: list[Layer] = []
    names = {module: name for name, module in model.named_modules()}
    first = True

    def visit(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        nonlocal first
        x, halo, flop = inputs[0], 0, 0.0
        if isinstance(module, (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)):
            kernel, stride, dilation = (
                v[0] if isinstance(v, tuple) else int(v)
                for v in (module.kernel_size, module.stride, getattr(module, "dilation", 1))
            )
            halo = max(dilation * (kernel - 1) + 1 - stride, 0)
        elif isinstance(module, nn.ConvTranspose3d):
            # A plane of the input reaches kernel planes of the output.
            halo = math.ceil((module.kernel_size[0] - module.stride[0]) / module.stride[0])
        elif isinstance(module, nn.Upsample):
            halo = 2 if "linear" in module.mode else 0
        else:
            return
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            grid = x if isinstance(module, nn.ConvTranspose3d) else y
            flop = 2.0 * math.prod(grid.shape[2:]) * module.weight.numel() * x.shape[0]
        n, c, _, h, w = x.shape
        found.append(Layer(names[module], y.shape[2], flop, halo, n * c * h * w * itemsize, not first))
        first = False

    hooks = [module.register_forward_hook(visit) for module in model.modules()]
    try:
        with torch.no_grad():
            model(torch.empty(shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def halo_bytes(layers: Sequence[Layer]) -> tuple[int, int]:
    """Sent over one cut in a step, forward and backward."""
    forward = sum(one.halo * one.plane_bytes for one in layers)
    return forward, sum(one.halo * one.plane_bytes for one in layers if one.has_gradient)


@dataclass(frozen=True)
class Network:
    """What the model has to know of a network and its volume."""

    seconds: float  # of a step on one node
    layers: list[Layer]
    norms: int
    parameter_bytes: int
    shape: tuple[int, ...]


def all_reduce(nbytes: float, nodes: int, link: Link) -> float:
    """A ring: every node sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages."""
    if nodes == 1:
        return 0.0
    return link.seconds(2 * (nodes - 1) / nodes * nbytes, 2 * (nodes - 1))


def spatial_step(network: Network, nodes: int, link: Link) -> float:
    """Seconds of a step with one volume over ``nodes``. Nothing is hidden behind the computation: planes are
    sent before the layer that needs them, gradients added after the backward."""
    if nodes == 1:
        return network.seconds
    # Every layer waits for the rank with most of its planes; a layer of few planes leaves ranks without work.
    flop = sum(one.flop for one in network.layers)
    share = sum(one.flop * math.ceil(one.depth / nodes) / one.depth for one in network.layers) / flop
    compute = network.seconds * share
    # An inner node sends and receives at two cuts at once; per cut half of the planes go each way.
    forward, backward = halo_bytes(network.layers)
    messages = 2 * sum(one.halo > 0 for one in network.layers)
    halo = link.seconds((forward + backward) / 2 * min(nodes - 1, 2), messages * min(nodes - 1, 2))
    # Moments forward and sums backward: a message from every node, one after another.
    norms = 2 * network.norms * (nodes - 1) * link.latency
    return compute + halo + norms + all_reduce(network.parameter_bytes, nodes, link)


def data_step(network: Network, nodes: int, link: Link, hidden: float) -> float:
    """Seconds of a step with a volume a node. Of the reduction, ``hidden`` of the backward, two thirds of the
    step, can go on meanwhile; the last bucket cannot."""
    reduce = all_reduce(network.parameter_bytes, nodes, link)
    last = min(1.0, 25 * 2**20 / network.parameter_bytes) * reduce
    return network.seconds + max(last, reduce - hidden * network.seconds * 2 / 3)


def unet(channels: Sequence[int] = (16, 32, 64, 128, 256)) -> nn.Module:
    """A plain U-Net with instance norm: two convolutions a level, strided down, transposed up."""
    from monai.networks.nets import DynUNet

    strides = [1, *[2] * (len(channels) - 1)]
    return DynUNet(3, 1, 2, [3] * len(channels), strides, strides[1:], filters=list(channels))


def measured_step(side: int, rounds: int = 3) -> float:
    """Seconds a step of training takes on this machine."""
    import volnet

    torch.manual_seed(0)
    network = unet()
    model = volnet.optimize(network)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    x, target = torch.randn(1, 1, side, side, side), torch.randint(2, (1, side, side, side))
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[rounds // 2]


def describe(shape: tuple[int, ...], seconds_per_voxel: float, itemsize: int) -> Network:
    with torch.device("meta"):
        network = unet()
    return Network(
        seconds_per_voxel * math.prod(shape[2:]),
        layers_of(network, shape, itemsize),
        sum(isinstance(m, nn.InstanceNorm3d) for m in network.modules()),
        4 * sum(p.numel() for p in network.parameters()),
        shape,
    )


def summary(networks: Sequence[Network]) -> str:
    lines = [
        "| volume | a step on one node | halo at a cut, forward | backward | in layers | norms | gradients |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network in networks:
        forward, backward = halo_bytes(network.layers)
        reaching = sum(one.halo > 0 for one in network.layers)
        lines.append(
            f"| {'x'.join(map(str, network.shape[2:]))} | {network.seconds:.2f} s "
            f"| {forward / 2**20:.1f} MiB | {backward / 2**20:.1f} MiB | {reaching} | {network.norms} "
            f"| {network.parameter_bytes / 2**20:.1f} MiB |"
        )
    return "\n".join(lines)


def table(network: Network, links: Sequence[Link], hidden: float) -> str:
    lines = [
        f"| nodes, one volume of {'x'.join(map(str, network.shape[2:]))} or one each | "
        + " | ".join(f"{kind}, {link.name}" for link in links for kind in ("slabs", "volumes"))
        + " |",
        "| --- |" + " --- |" * (2 * len(links)),
    ]
    for nodes in NODES:
        cells = []
        for link in links:
            step = spatial_step(network, nodes, link)
            speedup = network.seconds / step
            cells.append(f"{step:.2f} s, {speedup:.1f}x ({speedup / nodes:.0%})")
            cells.append(f"{network.seconds / data_step(network, nodes, link, hidden):.0%}")
        lines.append(f"| {nodes} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=96, help="of the volume that is measured (96)")
    parser.add_argument("--seconds", type=float, help="of its step, instead of measuring it")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast a node is (1)")
    parser.add_argument("--hidden", type=float, default=0.5, help="share of the backward that hides messages")
    parser.add_argument("--bf16", action="store_true", help="planes are sent in bfloat16")
    parser.add_argument("--link", type=float, help="Gbit/s of one other network")
    parser.add_argument("--latency", type=float, default=20.0, help="its microseconds (20)")
    given = parser.parse_args(arguments)
    seconds = given.seconds or measured_step(given.side)
    links = LINKS
    if given.link:
        links = (Link(f"{given.link:g} Gbit/s, {given.latency:g} us", given.link, given.latency * 1e-6, 0.7),)
    print(
        f"{seconds:.2f} s a step on 1x1x{given.side}x{given.side}x{given.side} "
        f"with {torch.get_num_threads()} threads, nodes {given.speed:g} times as fast; "
        f"torch {torch.__version__}\n"
    )
    per_voxel = seconds / given.side**3 / given.speed
    shapes = ((1, 1, 256, 512, 512), (1, 1, 128, 128, 128))
    networks = [describe(shape, per_voxel, 2 if given.bf16 else 4) for shape in shapes]
    print(summary(networks))
    for network in networks:
        print("\n" + table(network, links, given.hidden))


if __name__ == "__main__":
    main()
