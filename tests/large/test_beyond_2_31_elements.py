"""Volumes of more than 2^31 elements: `make test-large`, 20 GiB of memory and a quarter of an hour.

Results are compared with a small direct computation in float64: the corners, both sides of element 2^31, what
lies beyond it, and random voxels, at all channels; the gradient of the weight for two pairs of channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volnet import isa, memory, ops

pytestmark = pytest.mark.large

LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last_3d}
LEVELS = [level for level in ("avx512", "amx") if level in isa.available()] or [isa.available()[-1]]
SPACE = (400, 400, 344)
WIDE = 40  # channels: 2.2e9 elements
GIB = 2**30


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    memory.trim()


def need(gib: float) -> None:
    text = Path("/proc/meminfo").read_text()
    available = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    if available < gib * GIB:
        pytest.skip(f"needs {gib} GiB of memory, {available / GIB:.1f} GiB are free")


def volume(channels: int, layout: str, space: tuple[int, ...] = SPACE, seed: int = 0) -> Tensor:
    """``[1, channels, *space]`` bfloat16. A random block over and over: of prime length, so that what lies
    2^31 or 2^32 elements before is another value."""
    t = torch.empty(1, channels, *space, dtype=torch.bfloat16, memory_format=LAYOUTS[layout])
    flat = t.flatten() if layout == "plain" else t.permute(0, 2, 3, 4, 1).flatten()
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).bfloat16()
    for part in flat.split(len(block)):
        part.copy_(block[: len(part)])
    return t


def voxels(space: tuple[int, ...], channels: int) -> list[tuple[int, ...]]:
    """Where to look. In channels-last order voxel 2^31 / channels is the first beyond 2^31 elements; in plain
    order the last channel of any voxel is."""
    generator = torch.Generator().manual_seed(1)
    corners = list(itertools.product(*[(0, n - 1) for n in space]))
    count = math.prod(space)
    crossing = min(2**31 // channels, count - 2)
    some = [crossing - 1, crossing, crossing + 1]
    some += torch.randint(crossing, count, (24,), generator=generator).tolist()
    some += torch.randint(0, count, (24,), generator=generator).tolist()
    return corners + [tuple(map(int, torch.unravel_index(torch.tensor(v), space))) for v in some]


def patch(t: Tensor, first: list[int], size: tuple[int, ...]) -> Tensor:
    """``[C, *size]`` of ``t`` in float64, zeros outside."""
    ends = [(max(f, 0), min(f + n, m)) for f, n, m in zip(first, size, t.shape[2:], strict=True)]
    part = t[(0, slice(None), *(slice(a, b) for a, b in ends))].double()
    borders = [(a - f, f + n - b) for (a, b), f, n in zip(ends, first, size, strict=True)]
    return F.pad(part, [side for border in reversed(borders) for side in border])


def assert_near(actual: Tensor, expected: Tensor, error: float = 1e-2) -> None:
    """In relative L2, for what was rounded to bfloat16 once (2^-9 at most) and summed in another order."""
    assert actual.shape == expected.shape
    assert float((actual.double() - expected).norm()) <= error * float(expected.norm())


@dataclass(frozen=True)
class Geometry:
    channels: int
    filters: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def space(self) -> tuple[int, ...]:
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in SPACE)

    @property
    def arguments(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    def weight(self) -> Tensor:
        shape = (self.filters, self.channels // self.groups, *[self.kernel] * 3)
        return torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()


GEOMETRIES = {
    "input": Geometry(WIDE, 4),
    "output": Geometry(4, WIDE),
    "stride 2": Geometry(WIDE, 4, stride=2),
    "1x1x1": Geometry(WIDE, 4, kernel=1),
    "depthwise": Geometry(WIDE, WIDE, groups=WIDE),
}


def check_forward(at: Geometry, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    by_group = weight.double().reshape(at.groups, -1, *weight.shape[1:])
    for voxel in voxels(at.space, at.filters):
        window = patch(x, [v * at.stride - at.padding for v in voxel], (at.kernel,) * 3)
        taps = window.reshape(at.groups, -1, *window.shape[1:])
        expected = torch.einsum("gcijk,gocijk->go", taps, by_group).flatten() + bias.double()
        assert_near(y[(0, slice(None), *voxel)], expected)


def check_input_gradient(at: Geometry, weight: Tensor, dy: Tensor, dx: Tensor) -> None:
    by_group = weight.double().reshape(at.groups, -1, *weight.shape[1:])
    for voxel in voxels(SPACE, at.channels):
        expected = torch.zeros(at.groups, at.channels // at.groups, dtype=torch.float64)
        for tap in itertools.product(range(at.kernel), repeat=3):
            steps = [divmod(v + at.padding - t, at.stride) for v, t in zip(voxel, tap, strict=True)]
            if all(rest == 0 and 0 <= o < n for (o, rest), n in zip(steps, at.space, strict=True)):
                outputs = dy[(0, slice(None), *(o for o, _ in steps))].double().reshape(at.groups, -1)
                expected += torch.einsum("go,goc->gc", outputs, by_group[(..., *tap)])
        assert_near(dx[(0, slice(None), *voxel)], expected.flatten())


def check_weight_gradient(at: Geometry, x: Tensor, dy: Tensor, dw: Tensor, db: Tensor) -> None:
    reach = at.stride * (torch.tensor(at.space) - 1) + 1
    for k, c in ((0, 0), (at.filters - 1, at.channels // at.groups - 1)):
        channel = k // (at.filters // at.groups) * (at.channels // at.groups) + c
        padded, outputs = F.pad(x[0, channel], [at.padding] * 6).double(), dy[0, k].double()
        expected = torch.empty([at.kernel] * 3, dtype=torch.float64)
        for tap in itertools.product(range(at.kernel), repeat=3):
            cut = tuple(slice(t, t + n, at.stride) for t, n in zip(tap, reach.tolist(), strict=True))
            expected[tap] = (padded[cut] * outputs).sum()
        assert_near(dw[k, c], expected)
        assert_near(db[k], outputs.sum())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv3d(name: str, layout: str, level: str) -> None:
    at = GEOMETRIES[name]
    both_wide = at.channels == at.filters
    need(20)
    x, weight = volume(at.channels, layout), at.weight()
    bias = torch.randn(at.filters).bfloat16()
    with isa.limit(level):
        # A gradient is computed of all that ask for one: first of the volume alone.
        y = ops.conv3d(x.requires_grad_(), weight, bias, **at.arguments)
        assert max(x.numel(), y.numel()) > 2**31
        with torch.no_grad():
            check_forward(at, x, weight, bias, y)
        dy = y.detach() if both_wide else volume(at.filters, layout, at.space, seed=3)
        (dx,) = torch.autograd.grad(y, x, dy)
        check_input_gradient(at, weight, dy, dx)
        x = x.detach()
        del y, dx
        memory.trim()
        # Without AMX the gradient of a bfloat16 weight is summed from float32 copies: twice the memory, in
        # plain order four times, and 24 GiB hold no more.
        if not both_wide and (layout == "channels_last" or level == "amx"):
            y = ops.conv3d(x, weight.requires_grad_(), bias.requires_grad_(), **at.arguments)
            dw, db = torch.autograd.grad(y, (weight, bias), dy)
            check_weight_gradient(at, x, dy, dw, db)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv_transpose3d(layout: str) -> None:
    need(12)
    small = tuple(n // 2 for n in SPACE)
    x = volume(4, layout, small).requires_grad_()
    weight = torch.randn(4, WIDE, 2, 2, 2).bfloat16()
    y = ops.conv_transpose3d(x, weight, stride=2)
    assert y.numel() > 2**31
    for voxel in voxels(SPACE, WIDE):
        inputs = x.detach()[(0, slice(None), *(v // 2 for v in voxel))]
        of_tap = weight[(..., *(v % 2 for v in voxel))]
        assert_near(y.detach()[(0, slice(None), *voxel)], inputs.double() @ of_tap.double())
    (dx,) = torch.autograd.grad(y, x, dy := volume(WIDE, layout, seed=3))
    for voxel in voxels(small, 4):
        outputs = patch(dy, [2 * v for v in voxel], (2, 2, 2))
        assert_near(dx[(0, slice(None), *voxel)], torch.einsum("kdhw,ckdhw->c", outputs, weight.double()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_max_pool3d(layout: str) -> None:
    need(12)
    x = volume(WIDE, layout).requires_grad_()
    assert x.numel() > 2**31
    y = ops.max_pool3d(x, 2)
    small = tuple(y.shape[2:])
    for voxel in voxels(small, WIDE):
        window = patch(x.detach(), [2 * v for v in voxel], (2, 2, 2))
        assert torch.equal(y.detach()[(0, slice(None), *voxel)].double(), window.amax((1, 2, 3)))
    (dx,) = torch.autograd.grad(y, x, dy := volume(WIDE, layout, small, seed=3))
    for voxel in voxels(SPACE, WIDE):
        window = patch(x.detach(), [v // 2 * 2 for v in voxel], (2, 2, 2)).requires_grad_()
        F.max_pool3d(window, 2).backward(patch(dy, [v // 2 for v in voxel], (1, 1, 1)))
        assert torch.equal(
            dx[(0, slice(None), *voxel)].double(), window.grad[(slice(None), *(v % 2 for v in voxel))]
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_instance_norm(layout: str) -> None:
    need(16)
    x = volume(WIDE, layout).requires_grad_()
    assert x.numel() > 2**31
    y = ops.instance_norm(x, activation="relu")
    (dx,) = torch.autograd.grad(y, x, y.detach())
    x, y = x.detach(), y.detach()

    def means(t: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``t`` and of its squares, over each channel."""
        slices = (t[0, :, d].double() for d in range(SPACE[0]))
        sums = [torch.stack([s.sum((1, 2)), s.square_().sum((1, 2))]) for s in slices]
        first, second = torch.stack(sums).sum(0) / math.prod(SPACE)
        return first, second

    mean, square = means(x)
    invstd = (square - mean**2 + 1e-5) ** -0.5
    mean_y, square_y = means(y)
    for voxel in voxels(SPACE, WIDE):
        at = (0, slice(None), *voxel)
        xhat = (x[at].double() - mean) * invstd
        assert_near(y[at], xhat.relu())
        assert_near(dx[at], (xhat.relu() - mean_y - xhat * square_y) * invstd)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_avg_pool3d(layout: str) -> None:
    need(12)
    x = volume(WIDE, layout).requires_grad_()
    y = ops.avg_pool3d(x, 2)
    small = tuple(y.shape[2:])
    for voxel in voxels(small, WIDE):
        window = patch(x.detach(), [2 * v for v in voxel], (2, 2, 2))
        assert_near(y.detach()[(0, slice(None), *voxel)], window.mean((1, 2, 3)))
    (dx,) = torch.autograd.grad(y, x, dy := volume(WIDE, layout, small, seed=3))
    for voxel in voxels(SPACE, WIDE):
        of_window = dy[(0, slice(None), *(v // 2 for v in voxel))].double()
        assert_near(dx[(0, slice(None), *voxel)], of_window / 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_max_unpool3d(layout: str) -> None:
    need(14)
    small = tuple(n // 2 for n in SPACE)
    x = volume(WIDE, layout, small).requires_grad_()
    # One voxel of each window of 2x2x2, in turn.
    windows = torch.meshgrid(*map(torch.arange, small), indexing="ij")
    corner = sum(windows, torch.tensor(0))
    places = [2 * window + corner // 2**axis % 2 for axis, window in enumerate(windows)]
    plane = (places[0] * SPACE[1] + places[1]) * SPACE[2] + places[2]
    indices = plane.expand(1, WIDE, *small).contiguous(memory_format=LAYOUTS[layout])
    y = ops.max_unpool3d(x, indices, 2)
    assert y.numel() > 2**31
    (dx,) = torch.autograd.grad(y, x, dy := volume(WIDE, layout, seed=3))
    x, y = x.detach(), y.detach()
    for voxel in voxels(SPACE, WIDE):
        window = tuple(v // 2 for v in voxel)
        taken = all(int(place[window]) == v for place, v in zip(places, voxel, strict=True))
        assert torch.equal(y[(0, slice(None), *voxel)], x[(0, slice(None), *window)] * taken)
    for voxel in voxels(small, WIDE):
        place = tuple(int(axis[voxel]) for axis in places)
        assert torch.equal(dx[(0, slice(None), *voxel)], dy[(0, slice(None), *place)])


# To windows that overlap by a voxel, and to so few that they are made in parts.
@pytest.mark.parametrize("size", [(150, 133, 128), (2, 1, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adaptive_pool3d(layout: str, size: tuple[int, int, int]) -> None:
    need(12)
    x = volume(WIDE, layout).requires_grad_()
    assert x.numel() > 2**31
    mean = ops.adaptive_avg_pool3d(x, size)
    largest, places = ops.adaptive_max_pool3d(x, size, return_indices=True)
    outputs = voxels(size, WIDE)[: 60 if math.prod(size) > 100 else 4]  # large windows take their time
    for output in outputs:
        starts = [o * n // k for o, n, k in zip(output, SPACE, size, strict=True)]
        ends = [-(-(o + 1) * n // k) for o, n, k in zip(output, SPACE, size, strict=True)]
        extent = tuple(end - start for start, end in zip(starts, ends, strict=True))
        block = patch(x.detach(), starts, extent).flatten(1)
        at = (0, slice(None), *output)
        torch.testing.assert_close(mean.detach()[at].double(), block.mean(1), rtol=2**-8, atol=1e-4)
        assert torch.equal(largest.detach()[at].double(), block.amax(1))
    (dx,) = torch.autograd.grad(largest, x, torch.ones_like(largest))
    for output in outputs:
        at = places[(0, slice(None), *output)]
        for channel, voxel in enumerate(zip(*torch.unravel_index(at, SPACE), strict=True)):
            assert x.detach()[(0, channel, *voxel)] == largest.detach()[(0, channel, *output)]
            assert dx[(0, channel, *voxel)] >= 1
    assert int(dx[0, -1].count_nonzero()) == len(places[0, -1].unique())
    del dx
    (dx,) = torch.autograd.grad(mean, x, torch.ones_like(mean))
    # What the windows give is what they got.
    torch.testing.assert_close(float(dx[0, -1].double().sum()), float(math.prod(size)), rtol=1e-2, atol=0)
    torch.testing.assert_close(float(dx[0, 0].double().sum()), float(math.prod(size)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_interpolate(layout: str, mode: str) -> None:
    need(12)
    small = tuple(n // 2 for n in SPACE)
    x = volume(WIDE, layout, small).requires_grad_()
    y = ops.interpolate(x, scale_factor=2, mode=mode)
    assert y.numel() > 2**31
    for voxel in voxels(SPACE, WIDE):
        value = x.detach()[(0, slice(None), *(v // 2 for v in voxel))].double()
        if mode == "trilinear":  # an odd voxel leans to the next one, an even one to the one before
            near = [max(v // 2 - 1 + v % 2, 0) for v in voxel]
            block = patch(x.detach(), near, (2, 2, 2))
            for axis, v in reversed(list(enumerate(voxel))):
                upper = 0.0 if v in (0, SPACE[axis] - 1) else 0.25 if v % 2 else 0.75
                low, high = block.select(axis + 1, 0), block.select(axis + 1, 1)
                block = (1 - upper) * low + upper * high
            value = block
        assert_near(y.detach()[(0, slice(None), *voxel)], value)
    if mode == "nearest":
        (dx,) = torch.autograd.grad(y, x, dy := volume(WIDE, layout, seed=3))
        for voxel in voxels(small, WIDE):
            outputs = patch(dy, [2 * v for v in voxel], (2, 2, 2))
            assert_near(dx[(0, slice(None), *voxel)], outputs.sum((1, 2, 3)))


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pad(layout: str, mode: str) -> None:
    need(15)
    small = tuple(n - 2 for n in SPACE)
    x = volume(WIDE, layout, small).requires_grad_()
    y = ops.pad(x, (1,) * 6, mode)
    assert y.numel() > 2**31

    def source(v: int, n: int) -> int:
        """The voxel that is shown where mode is not constant."""
        i = v - 1
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    for voxel in voxels(SPACE, WIDE):
        at = [source(v, n) for v, n in zip(voxel, small, strict=True)]
        inside = all(v - 1 == i for v, i in zip(voxel, at, strict=True))
        value = x.detach()[(0, slice(None), *at)] * (inside or mode == "reflect")
        assert torch.equal(y.detach()[(0, slice(None), *voxel)], value)
    dy = y.detach()
    (dx,) = torch.autograd.grad(y, x, dy)
    for voxel in voxels(small, WIDE):
        shown = [
            [o for o in (0, v + 1, n + 1) if o == v + 1 or (mode == "reflect" and source(o, n) == v)]
            for v, n in zip(voxel, small, strict=True)
        ]
        assert_near(
            dx[(0, slice(None), *voxel)],
            sum(dy[(0, slice(None), *o)].double() for o in itertools.product(*shown)),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cat(layout: str) -> None:
    need(15)
    parts = [
        volume(WIDE // 4, layout, seed=3).requires_grad_(),
        volume(WIDE - WIDE // 4, layout).requires_grad_(),
    ]
    y = ops.cat(parts, 1)
    assert y.numel() > 2**31
    for voxel in voxels(SPACE, WIDE):
        at = (0, slice(None), *voxel)
        assert torch.equal(y.detach()[at], torch.cat([p.detach()[at] for p in parts]))
    for part, dx in zip(parts, torch.autograd.grad(y, parts, y.detach()), strict=True):
        for voxel in voxels(SPACE, WIDE):
            at = (0, slice(None), *voxel)
            assert torch.equal(dx[at], part.detach()[at])


@pytest.mark.parametrize("name", ["relu", "gelu", "prelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations(layout: str, name: str) -> None:
    need(15)
    x = volume(WIDE, layout).requires_grad_()
    weight = torch.linspace(-0.5, 0.5, WIDE).bfloat16()
    arguments = (weight,) if name == "prelu" else ()
    y = getattr(ops, name)(x, *arguments)
    (dx,) = torch.autograd.grad(y, x, y.detach())
    for voxel in voxels(SPACE, WIDE):
        at = (0, slice(None), *voxel)
        exact = x.detach()[at].double()[None].requires_grad_()
        expected = getattr(F, name)(exact, *(w.double() for w in arguments))
        assert_near(y.detach()[at], expected.detach()[0])
        assert_near(dx[at], torch.autograd.grad(expected, exact, expected)[0][0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grid_sample(layout: str) -> None:
    """Every voxel is shown where it is: the grid is that of the volume itself."""
    need(15)
    space = (130, 100, 128)
    channels = 2**31 // math.prod(space) + 2
    x = volume(channels, layout, space)
    grid = ops.affine_grid(torch.eye(3, 4)[None], [1, 1, *space], align_corners=False).bfloat16()
    y = ops.grid_sample(x, grid, mode="nearest", align_corners=False)
    assert y.numel() > 2**31
    size = torch.tensor(list(reversed(space)), dtype=torch.float64)
    for voxel in voxels(space, channels):
        at = ((grid[(0, *voxel)].double() + 1) * size - 1) / 2
        near = [int(i) for i in at.round().tolist()[::-1]]
        if float((at - at.floor() - 0.5).abs().min()) < 0.05:
            continue  # as near to the next one
        inside = all(0 <= i < n for i, n in zip(near, space, strict=True))
        value = x[(0, slice(None), *near)] if inside else torch.zeros(channels, dtype=x.dtype)
        assert torch.equal(y[(0, slice(None), *voxel)], value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_and_argmax(layout: str) -> None:
    need(15)
    x = volume(WIDE, layout).requires_grad_()
    labels = ops.argmax(x.detach())
    y = ops.softmax(x, 1)
    dy = x.detach()
    (dx,) = torch.autograd.grad(y, x, dy)
    for voxel in voxels(SPACE, WIDE):
        at = (0, slice(None), *voxel)
        exact = x.detach()[at].double().requires_grad_()
        expected = exact.softmax(0)
        assert int(labels[(0, *voxel)]) == int(exact.argmax())
        assert_near(y.detach()[at], expected.detach())
        assert_near(dx[at], torch.autograd.grad(expected, exact, dy[at].double())[0], error=3e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_argmax_of_more_labels_than_2_31(layout: str) -> None:
    need(15)
    space = (1400, 1300, 1200)
    x = volume(2, layout, space)
    labels = ops.argmax(x)
    assert labels.numel() > 2**31
    for voxel in voxels(space, 1):
        assert int(labels[(0, *voxel)]) == int(x[(0, slice(None), *voxel)].double().argmax())
