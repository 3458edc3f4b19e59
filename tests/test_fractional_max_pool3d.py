from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

X = torch.randn(2, 3, 8, 9, 10, generator=torch.Generator().manual_seed(0))
SAMPLES = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_torch_on_its_own_samples_for_the_same_seed(dtype, layout):
    count = 0
    for sample in opinfo_samples("nn.functional.fractional_max_pool3d", dtype):
        x = sample.input
        if x.dim() == 5:
            x = x.contiguous(memory_format=layout)
        x = x.detach().requires_grad_()
        results = []
        for f in (ops, F):
            torch.manual_seed(count)
            results.append(f.fractional_max_pool3d(x, *sample.args, **sample.kwargs))
        ours, theirs = results
        if isinstance(ours, tuple):
            assert torch.equal(ours[1], theirs[1])
            ours, theirs = ours[0], theirs[0]
        assert torch.equal(ours, theirs)
        # Small whole numbers: their sums are exact in every order, and in bfloat16.
        weight = torch.arange(ours.numel()).remainder(3).reshape(ours.shape).to(dtype)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        assert torch.equal(*grads)
        count += 1
    assert count > 5


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_samples_give_what_torch_gives(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(2, top)) for top in (20, 9, 9, 300))]
    kernel = [data.draw(st.integers(1, min(n - 1, 5))) for n in shape[2:]]
    sizes = [data.draw(st.integers(1, n - k)) for n, k in zip(shape[2:], kernel, strict=True)]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, generator=generator).to(dtype)
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS))).requires_grad_()
    samples = torch.rand(*shape[:2], 3, generator=generator).to(dtype)
    arguments = {"return_indices": True, "_random_samples": samples}
    try:
        expected, places = F.fractional_max_pool3d(x, kernel, sizes, **arguments)
    except RuntimeError:
        assert dtype == torch.bfloat16  # its rounding takes torch's windows past the volume's end
        return
    y, indices = ops.fractional_max_pool3d(x, kernel, sizes, **arguments)
    assert torch.equal(y, expected)
    assert torch.equal(indices, places)
    weight = torch.arange(y.numel()).remainder(3).reshape(y.shape).to(dtype)
    grads = [torch.autograd.grad(result, x, weight)[0] for result in (y, expected)]
    assert torch.equal(*grads) or dtype == torch.bfloat16  # where torch adds more than 8 bits hold
    alone = ops.fractional_max_pool3d(x, kernel, sizes, _random_samples=samples)
    assert torch.equal(alone, y)
    assert torch.equal(torch.autograd.grad(alone, x, weight)[0], grads[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "kernel", "sizes"), [((2, 3, 40, 60, 70), 2, (25, 31, 52)), ((1, 20, 33, 30, 40), 4, (7, 5, 4))]
)
def test_work_in_many_pieces_fits_together(shape, kernel, sizes, dtype, level, layout):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    samples = torch.rand(*shape[:2], 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = F.fractional_max_pool3d(x, kernel, sizes, _random_samples=samples)
    weight = torch.arange(expected.numel()).remainder(3).reshape(expected.shape).to(dtype)
    with isa.limit(level):
        y = ops.fractional_max_pool3d(x, kernel, sizes, _random_samples=samples)
        (grad,) = torch.autograd.grad(y, x, weight)
    assert torch.equal(y, expected)
    assert torch.equal(grad, torch.autograd.grad(expected, x, weight)[0])


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (X, {"kernel_size": 2}, "needs an output_size or an output_ratio"),
        (X, {"kernel_size": 2, "output_size": 7}, r"kernel_size=\(2, 2, 2\) and output_size=\(7, 7, 7\)"),
        (X, {"kernel_size": 2, "output_ratio": 1.5}, "too small"),
        (X, {"kernel_size": 2, "output_size": -1}, r"at least 0 on every axis, got \(-1, -1, -1\)"),
        (X, {"kernel_size": (2, 2), "output_size": 3}, "one int or three"),
        (X, {"kernel_size": 2, "output_size": (3, 3)}, "one int or three"),
        (X, {"kernel_size": 2.0, "output_size": 3}, "kernel_size"),
        (X, {"kernel_size": 2, "output_size": 3.0}, "output_size"),
        (X, {"kernel_size": 2, "output_size": "3"}, "output_size"),
        (X[:, :0], {"kernel_size": 2, "output_size": 3}, "only the batch"),
        (X.to(torch.complex64), {"kernel_size": 2, "output_size": 3}, "complex64"),
        (X[None], {"kernel_size": 2, "output_size": 3}, "input must be"),
        (X, {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES[:1]}, r"\[N, C, 3\]"),
        (X, {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES[:, :2]}, r"\[N, C, 3\]"),
        (X, {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES[..., :2]}, r"\[N, C, 3\]"),
        (X, {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES[0]}, r"\[N, C, 3\]"),
        (X, {"kernel_size": 2, "output_size": 3, "_random_samples": SAMPLES.double()}, "float64"),
    ],
)
def test_bad_arguments_raise_as_in_torch(x, arguments, message):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        F.fractional_max_pool3d(x, **arguments)
    classes = {NotImplementedError: RuntimeError}
    with pytest.raises(classes.get(theirs.type, theirs.type), match=message):
        ops.fractional_max_pool3d(x, **arguments)


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan")])
def test_samples_outside_of_the_unit_interval_raise(value):
    with pytest.raises(RuntimeError, match=r"in \[0, 1\]"):
        ops.fractional_max_pool3d(X, 2, 3, _random_samples=torch.full((2, 3, 3), value))


def test_a_window_has_at_least_a_voxel():
    with pytest.raises(RuntimeError, match=r"kernel_size must be at least 1 .* \(0, 0, 0\)"):
        ops.fractional_max_pool3d(X, 0, 3)


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="three numbers"):
        torch.ops.volnet.fractional_max_pool3d(X, SAMPLES, [2], [3] * 3)
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.volnet.fractional_max_pool3d(X, SAMPLES, [2] * 3, [8] * 3)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet.fractional_max_pool3d(X, SAMPLES[:1], [2] * 3, [3] * 3)
    indices = torch.zeros(2, 3, 2, 3, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="do not belong"):
        torch.ops.volnet._fractional_max_pool3d_backward(X, indices, [2, 3, 8, 9, 10], [2] * 3, False)


def test_no_output_gives_no_gradient():
    x = X.clone().requires_grad_()
    y = ops.fractional_max_pool3d(x, 2, (2, 0, 3))
    assert y.shape == (2, 3, 2, 0, 3)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


def test_backward_keeps_places_in_four_bytes():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.fractional_max_pool3d(X.clone().requires_grad_(), 2, 3)
    assert [t.dtype for t in kept] == [torch.int32]


def test_second_derivatives():
    x = X.double()[:1, :2, :5, :5, :5].requires_grad_()
    samples = SAMPLES[:1, :2].double()
    direct = torch.ops.volnet.fractional_max_pool3d

    def named(x):
        return ops.fractional_max_pool3d(x, 2, (2, 3, 2), _random_samples=samples) ** 2

    def called(x):
        return direct(x, samples, [2] * 3, [2, 3, 2]) ** 2

    for function in (named, called):
        assert torch.autograd.gradcheck(function, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_autocast_gives_what_torch_gives():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x in (X, X.bfloat16()):
            results = []
            for f in (ops, F):
                torch.manual_seed(0)
                results.append(f.fractional_max_pool3d(x, 2, 3))
            assert results[0].dtype == results[1].dtype
            assert torch.equal(*results)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        arguments = (x, SAMPLES, [2] * 3, [3] * 3)
        torch.library.opcheck(torch.ops.volnet.fractional_max_pool3d, arguments)
        torch.library.opcheck(torch.ops.volnet.fractional_max_pool3d_with_indices, arguments)


def test_module_is_a_drop_in():
    for arguments in ({"output_size": (3, 4, 5)}, {"output_ratio": 0.5, "return_indices": True}):
        module = nn.FractionalMaxPool3d(2, **arguments, _random_samples=SAMPLES)
        theirs = torch.nn.FractionalMaxPool3d(2, **arguments, _random_samples=SAMPLES)
        assert isinstance(module, torch.nn.FractionalMaxPool3d)
        assert repr(module) == repr(theirs)
        assert list(module.state_dict()) == list(theirs.state_dict())
        torch.testing.assert_close(module(X), theirs(X))
