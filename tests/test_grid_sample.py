from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import ops

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 5, 6, 7, generator=GENERATOR)
GRID = torch.rand(2, 4, 3, 5, 3, generator=GENERATOR) * 2.4 - 1.2
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
PADDINGS = ["zeros", "border", "reflection"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_torch_on_its_own_samples(layout):
    count = 0
    for sample in opinfo_samples("nn.functional.grid_sample", torch.float64):
        x, grid = sample.input, sample.args[0] if sample.args else sample.kwargs["grid"]
        if x.dim() != 5:
            continue
        x = x.contiguous(memory_format=layout).requires_grad_()
        grid = grid.clone().requires_grad_()
        arguments = {k: v for k, v in sample.kwargs.items() if k != "grid"}
        ours, theirs = (f(x, grid, **arguments) for f in (ops.grid_sample, F.grid_sample))
        torch.testing.assert_close(ours, theirs)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).reshape(ours.shape)
        grads = [torch.autograd.grad(y, (x, grid), weight) for y in (ours, theirs)]
        torch.testing.assert_close(*grads)
        count += 1
    assert count > 5


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_grid_gives_what_torch_gives(data):
    shape = [data.draw(st.integers(1, n)) for n in (2, 20, 7, 7, 7)]
    size = [data.draw(st.integers(1, n)) for n in (4, 5, 70)]
    arguments = {
        "mode": data.draw(st.sampled_from(["bilinear", "bilinear", "nearest"])),
        "padding_mode": data.draw(st.sampled_from(PADDINGS)),
        "align_corners": data.draw(st.booleans()),
    }
    reach = data.draw(st.sampled_from([1.0, 1.2, 5.0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    grid = (torch.rand(shape[0], *size, 3, dtype=torch.float64, generator=generator) * 2 - 1) * reach
    x.requires_grad_()
    grid.requires_grad_()
    ours, theirs = (f(x, grid, **arguments) for f in (ops.grid_sample, F.grid_sample))
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    grads = [torch.autograd.grad(y, (x, grid), weight) for y in (ours, theirs)]
    torch.testing.assert_close(*grads)
    # Places are rounded to an epsilon of the extent.
    single = ops.grid_sample(x.detach().float(), grid.detach().float(), **arguments)
    if arguments["mode"] == "bilinear":
        torch.testing.assert_close(single.double(), theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_places_that_are_no_numbers(padding_mode):
    grid = GRID.clone()
    grid[0, 0, 0, :3] = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-1e30] * 3])
    y = ops.grid_sample(X, grid, padding_mode=padding_mode, align_corners=False)
    assert y.isfinite().all()
    torch.testing.assert_close(
        y[1], F.grid_sample(X, grid, padding_mode=padding_mode, align_corners=False)[1], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_work_in_many_pieces_fits_together(layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 40, 12, 13, 14, generator=generator).contiguous(memory_format=layout).requires_grad_()
    grid = (torch.rand(1, 20, 21, 22, 3, generator=generator) * 2.4 - 1.2).requires_grad_()
    ours, theirs = (f(x, grid, align_corners=True) for f in (ops.grid_sample, F.grid_sample))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weight = torch.randn(ours.shape, generator=generator)
    grads = [torch.autograd.grad(y, (x, grid), weight) for y in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "grid", "arguments", "error"),
    [
        (X, GRID, {"mode": "trilinear"}, ValueError),
        (X, GRID, {"mode": "bicubic"}, RuntimeError),
        (X, GRID, {"padding_mode": "wrap"}, ValueError),
        (X, GRID, {"align_corners": 1}, TypeError),
        (X, GRID[:1], {}, RuntimeError),
        (X, GRID[..., :2], {}, RuntimeError),
        (X, GRID[:, 0], {}, RuntimeError),
        (X[:, :, 0], GRID, {}, RuntimeError),
        (X[:, :, :0], GRID, {}, RuntimeError),
        (X, GRID.double(), {}, RuntimeError),
        (X.int(), GRID.int(), {}, RuntimeError),
        ([1.0], GRID, {}, TypeError),
    ],
)
def test_bad_arguments_raise(x, grid, arguments, error):
    with pytest.raises(error, match="grid_sample: "):
        ops.grid_sample(x, grid, **{"align_corners": False, **arguments})


def test_torchs_warning_about_align_corners():
    with pytest.warns(UserWarning, match="align_corners"):
        ops.grid_sample(X, GRID)


def test_autocast_gives_what_torch_gives():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(X.bfloat16(), GRID, align_corners=True) for f in (ops.grid_sample, F.grid_sample))
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_torch_opcheck():
    x, grid = X.clone().requires_grad_(), GRID.clone().requires_grad_()
    torch.library.opcheck(torch.ops.volnet.grid_sample, (x, grid, "bilinear", "border", False))


@pytest.mark.parametrize("align_corners", [False, True])
def test_affine_grid(align_corners):
    theta = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    size = (2, 3, 4, 5, 6)
    expected = F.affine_grid(theta, list(size), align_corners)
    assert torch.equal(ops.affine_grid(theta, size, align_corners), expected)
    with pytest.raises(NotImplementedError, match="affine_grid: "):
        ops.affine_grid(theta, (2, 3, 4, 5), align_corners)
    with pytest.raises(ValueError, match="affine matrices"):
        ops.affine_grid(theta[:, :2], size, align_corners)
