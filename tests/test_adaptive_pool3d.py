from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

X = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
NAMES = ["adaptive_avg_pool3d", "adaptive_max_pool3d"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torch_on_its_own_samples(name, dtype, layout):
    count = 0
    for sample in opinfo_samples(f"nn.functional.{name}", dtype):
        x = sample.input
        if x.dim() == 5:
            x = x.contiguous(memory_format=layout)
        x = x.detach().requires_grad_()
        ours, theirs = (getattr(f, name)(x, *sample.args, **sample.kwargs) for f in (ops, F))
        if isinstance(ours, tuple):
            assert torch.equal(ours[1], theirs[1])
            ours, theirs = ours[0], theirs[0]
        # torch adds bfloat16 in bfloat16, volnet in float32.
        tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(ours, theirs, **tolerance)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=dtype).reshape(ours.shape)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads, **tolerance)
        count += 1
    assert count > 5


@pytest.mark.parametrize("name", NAMES)
def test_rejects_what_torch_rejects_in_its_own_error_samples(name):
    (info,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    errors = list(info.error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type):
            getattr(ops, name)(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "output_size"),
    [
        (X, -1),
        (X, (2, -1, 2)),
        (X, (2, 2)),
        (X, (2, 2, 2, 2)),
        (X, 2.5),
        (X, "2"),
        (X, None),
        (X[0, 0], 2),
        (X[0, 0], (2, 2, 2)),
        (X[None], 2),
        (X[:, :, :0], 2),
        (X.to(torch.complex64), 2),
        ([1.0], 2),
    ],
)
def test_bad_arguments_raise(name, x, output_size):
    with pytest.raises((RuntimeError, TypeError, ValueError), match=f"{name}: "):
        getattr(ops, name)(x, output_size)


def test_direct_calls_are_checked_too():
    for name in NAMES:
        with pytest.raises(RuntimeError, match="three numbers"):
            getattr(torch.ops.volnet, name)(X, [2])
        with pytest.raises(RuntimeError, match="at least 0"):
            getattr(torch.ops.volnet, name)(X, [2, -1, 2])
    with pytest.raises(RuntimeError, match="does not belong"):
        torch.ops.volnet._adaptive_avg_pool3d_backward(X, [1, 3, 5, 6, 7], False)
    indices = torch.zeros(2, 3, 2, 3, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet._adaptive_max_pool3d_backward(X, indices, [2, 3, 5, 6, 7], False)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_output_size_gives_what_torch_gives(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(1, top)) for top in (20, 7, 7, 40))]
    sizes = tuple(data.draw(st.integers(1, top)) for top in (9, 9, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, generator=generator).contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    x.requires_grad_()
    weight = torch.randn([*shape[:2], *sizes], generator=generator)
    for name in NAMES:
        ours, theirs = (getattr(f, name)(x, sizes) for f in (ops, F))
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 5, 40, 60, 70), 1),  # parts of d
        ((1, 5, 40, 60, 70), (3, 2, 1)),
        ((1, 2, 3, 300, 800), (2, 1, 3)),  # parts of d and h
        ((2, 9, 31, 60, 50), (20, 25, 33)),  # many rows
    ],
)
def test_work_in_many_pieces_fits_together(shape, sizes, dtype, level, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).mul(64).round().to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    for name in NAMES:
        extra = {"return_indices": True} if "max" in name else {}
        theirs = getattr(F, name)(exact, sizes, **extra)
        with isa.limit(level):
            ours = getattr(ops, name)(x, sizes, **extra)
            if extra:
                assert torch.equal(ours[1], theirs[1])
                assert torch.equal(ops.adaptive_max_pool3d(x.detach(), sizes), ours[0])
                ours, theirs = ours[0], theirs[0]
            weight = torch.arange(ours.numel()).remainder(3).reshape(ours.shape)
            (grad,) = torch.autograd.grad(ours, x, weight.to(dtype))
        tolerance = {"rtol": 2**-8, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(ours.double(), theirs, **tolerance)
        (expected,) = torch.autograd.grad(theirs, exact, weight.double())
        torch.testing.assert_close(grad.double(), expected, **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
def test_the_maximum_of_parts_is_the_first_among_equals_and_the_last_among_nans(level, layout):
    x = torch.zeros(1, 3, 20, 90, 90)
    nan = x.clone()
    nan[..., 3, 5, 80] = nan[..., 17, 2, 4] = float("nan")
    infinite = torch.full_like(x, float("-inf"))
    with isa.limit(level):
        for volume, place in ((x, 0), (nan, (17 * 90 + 2) * 90 + 4), (infinite, 0)):
            volume = volume.contiguous(memory_format=layout)
            y, indices = ops.adaptive_max_pool3d(volume, 1, return_indices=True)
            torch.testing.assert_close(y, volume.amax((2, 3, 4), keepdim=True), equal_nan=True)
            assert indices.flatten().tolist() == [place] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_output_gives_no_gradient(name, layout):
    x = X.clone(memory_format=layout).requires_grad_()
    y = getattr(ops, name)(x, (2, 0, 3))
    assert y.shape == getattr(F, name)(x, (2, 0, 3)).shape
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_mean_is_exact_in_bfloat16(layout):
    x = torch.full((1, 3, 64, 64, 64), 3.0, dtype=torch.bfloat16).contiguous(memory_format=layout)
    assert torch.equal(ops.adaptive_avg_pool3d(x, 1), torch.full((1, 3, 1, 1, 1), 3.0, dtype=torch.bfloat16))


def test_second_derivatives():
    x = X.double()[:1, :2, :4, :4, :4].requires_grad_()
    direct = torch.ops.volnet.adaptive_max_pool3d
    for function in (ops.adaptive_avg_pool3d, ops.adaptive_max_pool3d, direct):

        def square(x, function=function):
            return function(x, [3, 2, 3]) ** 2

        assert torch.autograd.gradcheck(square, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(square, x, fast_mode=True)


def test_autocast_gives_what_torch_gives():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in NAMES:
            for x in (X, X.bfloat16()):
                ours, theirs = (getattr(f, name)(x, 2) for f in (ops, F))
                assert ours.dtype == theirs.dtype
                torch.testing.assert_close(ours, theirs)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.adaptive_avg_pool3d, (x, [2, 3, 3]))
        torch.library.opcheck(torch.ops.volnet.adaptive_max_pool3d, (x, [2, 3, 3]))
        torch.library.opcheck(torch.ops.volnet.adaptive_max_pool3d_with_indices, (x, [2, 3, 3]))


def test_modules_are_drop_ins():
    for name, arguments in (("AdaptiveAvgPool3d", {}), ("AdaptiveMaxPool3d", {"return_indices": True})):
        module = getattr(nn, name)((2, None, 3), **arguments)
        theirs = getattr(torch.nn, name)((2, None, 3), **arguments)
        assert isinstance(module, type(theirs))
        assert repr(module) == repr(theirs)
        torch.testing.assert_close(module(X), theirs(X))
