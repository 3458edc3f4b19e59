from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.opinfo import opinfo_samples
from volnet import nn, ops

X = torch.randn(2, 3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear", "area"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_torch_on_its_own_samples(dtype, mode, layout):
    count = 0
    for sample in opinfo_samples("nn.functional.interpolate", dtype, mode):
        if sample.input.dim() != 5:
            continue
        x = sample.input.contiguous(memory_format=layout).requires_grad_()
        ours, theirs = (f(x, *sample.args, **sample.kwargs) for f in (ops.interpolate, F.interpolate))
        torch.testing.assert_close(ours, theirs)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=dtype).reshape(ours.shape)
        grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*grads)
        count += 1
    assert count > 1


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 4, "scale_factor": 2},
        {"size": (4, 4)},
        {"size": (4, 4, 4, 4)},
        {"size": (4, 4, 0)},
        {"size": -1},
        {"size": (4.0, 4, 4)},
        {"size": "4"},
        {"scale_factor": (2, 2)},
        {"scale_factor": 0.1},
        {"scale_factor": "2"},
        {"size": 4, "align_corners": True},
        {"size": 4, "mode": "area", "align_corners": False},
        {"size": 4, "mode": "nearest-exact", "align_corners": False},
        {"size": 4, "mode": "bilinear"},
        {"size": 4, "mode": "linear"},
        {"size": 4, "mode": "cubic"},
        {"size": 4, "mode": "trilinear", "antialias": True},
        {"size": 4, "recompute_scale_factor": True},
    ],
)
def test_bad_arguments_raise_as_in_torch(arguments):
    with pytest.raises((RuntimeError, TypeError, ValueError, NotImplementedError)) as theirs:
        F.interpolate(X, **arguments)
    with pytest.raises(theirs.type, match="interpolate: "):
        ops.interpolate(X, **arguments)


@pytest.mark.parametrize("x", [X[0], X[:, :0], X[:, :, :0], X.int(), X.to_sparse()])
def test_bad_inputs_raise(x):
    with pytest.raises((RuntimeError, NotImplementedError), match="interpolate: "):
        ops.interpolate(x, size=4)


def test_direct_calls_are_checked_too():
    with pytest.raises(RuntimeError, match="mode must be"):
        torch.ops.volnet.interpolate(X, [4] * 3, "cubic", False, None)
    with pytest.raises(RuntimeError, match="greater than 0"):
        torch.ops.volnet.interpolate(X, [4, 0, 4], "nearest", False, None)
    with pytest.raises(RuntimeError, match="three numbers"):
        torch.ops.volnet.interpolate(X, [4, 4], "nearest", False, None)
    with pytest.raises(RuntimeError, match="does not belong"):
        torch.ops.volnet._interpolate_backward(X, [1, 3, 4, 4, 4], "nearest", False, None, False)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nearest_takes_the_very_voxels_that_torch_takes(data):
    shape = [
        1,
        data.draw(st.sampled_from([1, 3, 4, 17])),
        *(data.draw(st.integers(1, n)) for n in (9, 9, 300)),
    ]
    mode = data.draw(st.sampled_from(["nearest", "nearest-exact"]))
    factor = data.draw(st.one_of(st.none(), st.floats(0.3, 4)))
    if factor is None:
        arguments = {"size": (3, 5, data.draw(st.integers(1, 700)))}
    else:
        factors = (1.0, 2.0, factor)
        if shape[4] * factor < 1:
            return
        arguments = {"scale_factor": factors, "recompute_scale_factor": data.draw(st.booleans())}
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS)))
    ours, theirs = (f(x, mode=mode, **arguments) for f in (ops.interpolate, F.interpolate))
    assert torch.equal(ours, theirs)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_size_gives_what_torch_gives(data):
    shape = [data.draw(st.integers(0, 2)), *(data.draw(st.integers(1, n)) for n in (20, 7, 7, 70))]
    mode = data.draw(st.sampled_from(["trilinear", "area"]))
    arguments = {"size": [data.draw(st.integers(1, n)) for n in (9, 9, 160)], "mode": mode}
    if mode == "trilinear":
        arguments["align_corners"] = data.draw(st.booleans())
    x = torch.randn(shape).contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS))).requires_grad_()
    ours, theirs = (f(x, **arguments) for f in (ops.interpolate, F.interpolate))
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape)
    grads = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_larger_than_the_caches(dtype, mode, layout):
    # Written past the caches, and in many pieces.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 25, 24, 24, generator=generator).to(dtype).contiguous(memory_format=layout)
    x.requires_grad_()
    y = ops.interpolate(x, scale_factor=2, mode=mode)
    exact = x.detach().double().requires_grad_()
    expected = F.interpolate(exact, scale_factor=2, mode=mode)
    torch.testing.assert_close(
        y, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5
    )
    weight = torch.randn(y.shape, generator=generator).to(dtype)
    y.backward(weight)
    expected.backward(weight.double())
    torch.testing.assert_close(
        x.grad, exact.grad.to(dtype), rtol=1e-4 if dtype == torch.float32 else 0.02, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["nearest", "trilinear"])
def test_planes_that_are_made_in_blocks(mode):
    x = torch.randn(1, 2, 4, 203, 251, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = F.interpolate(x.float(), size=(9, 407, 512), mode=mode)
    y = ops.interpolate(x, size=(9, 407, 512), mode=mode)
    # One rounding, and the order of float32 sums, which may change its direction.
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)


def test_infinities_stay_in_their_voxels():
    # An output with fewer taps than its neighbours must not read more than it has.
    x = torch.zeros(1, 2, 2, 2, 50)
    x[..., 10] = float("inf")
    for arguments in ({"size": (1, 1, 20), "mode": "area"}, {"size": (4, 4, 75), "mode": "nearest"}):
        torch.testing.assert_close(ops.interpolate(x, **arguments), F.interpolate(x, **arguments))


@pytest.mark.parametrize("mode", ["nearest", "trilinear", "area"])
def test_second_derivatives(mode):
    x = X.double()[:1, :2, :3, :2, :4].clone().requires_grad_()

    def function(x):
        return ops.interpolate(x, size=(4, 3, 7), mode=mode) ** 2

    assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "trilinear", "area"])
def test_autocast_gives_the_dtype_that_torch_gives(mode):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(X.bfloat16(), scale_factor=2, mode=mode) for f in (ops.interpolate, F.interpolate))
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-2)


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.library.opcheck(torch.ops.volnet.interpolate, (x, [7, 8, 9], "trilinear", True, None))


@pytest.mark.parametrize(
    "arguments",
    [{"size": (4, 7, 9)}, {"scale_factor": 2, "mode": "trilinear", "align_corners": True}],
)
def test_module_is_a_drop_in(arguments):
    module, theirs = nn.Upsample(**arguments), torch.nn.Upsample(**arguments)
    assert isinstance(module, torch.nn.Upsample)
    assert repr(module) == repr(theirs)
    torch.testing.assert_close(module(X), theirs(X))
