from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
X = 2 * torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
INPLACE = {
    "relu": {},
    "leaky_relu": {"negative_slope": 0.3},
    "falling": {"negative_slope": -0.3},
    "silu": {},
    "elu": {"alpha": 1.3},
    "negative_elu": {"alpha": -1.3},
}


def named(name):
    stem = {"falling": "leaky_relu", "negative_elu": "elu"}.get(name, name)
    return getattr(ops, stem), getattr(F, stem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu", "gelu", "elu", "prelu", "sigmoid"])
def test_agrees_with_torch_on_its_own_samples(name, dtype):
    info = "sigmoid" if name == "sigmoid" else f"nn.functional.{name}"
    theirs = torch.sigmoid if name == "sigmoid" else getattr(F, name)
    count = 0
    for sample in opinfo_samples(info, dtype):
        x = sample.input.detach().requires_grad_()
        results = [f(x, *sample.args, **sample.kwargs) for f in (getattr(ops, name), theirs)]
        torch.testing.assert_close(*results)
        assert results[0].stride() == results[1].stride() or not x.is_contiguous()
        weight = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(x.shape).to(dtype)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, weight)[0] for y in results))
        count += 1
    assert count > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", INPLACE)
def test_in_place_changes_the_memory_and_differentiates(name, layout, dtype):
    ours, theirs = named(name)
    leaf = X.to(dtype).clone(memory_format=layout).requires_grad_()
    x = leaf * 1
    y = ours(x, **INPLACE[name], inplace=True)
    assert y is x
    in_place = name not in ("falling", "negative_elu")  # of which torch has no gradient in place
    expected = theirs(leaf * 1, **INPLACE[name], inplace=in_place)
    torch.testing.assert_close(y, expected)
    weight = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(dtype)
    ours_dx, theirs_dx = (torch.autograd.grad(result, leaf, weight)[0] for result in (y, expected))
    torch.testing.assert_close(ours_dx, theirs_dx)


def test_in_place_is_seen_by_autograd():
    x = (X * 1).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        ops.relu(x, inplace=True)
    saved = x * 1
    square = saved**2
    ops.relu(saved, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@pytest.mark.parametrize("index", [(slice(None), 1), (..., slice(1, 4)), (0,), (..., slice(None, None, 2))])
def test_in_place_on_a_view(index):
    results = []
    for function in (ops.silu, F.silu):
        leaf = X.clone().requires_grad_()
        x = leaf * 1
        function(x[index], inplace=True)
        results.append((x, torch.autograd.grad((x * X).sum(), leaf)[0]))
    torch.testing.assert_close(*results)


def test_in_place_compiles():
    def function(x):
        y = x * 1
        ops.relu(y, inplace=True)
        return y + ops.elu(x)

    x = X.clone().requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    expected = F.relu(x) + F.elu(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (compiled, expected)))


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "silu", "gelu", "elu", "sigmoid", "prelu", "falling", "gelu_tanh"]
)
def test_second_derivatives(name):
    x = X.double()[:1, :, :2, :2, :2].clone().requires_grad_()
    weight = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    function = {
        "prelu": ops.prelu,
        "falling": lambda x, w: ops.leaky_relu(x, -0.5) * w.sum(),
        "gelu_tanh": lambda x, w: ops.gelu(x, "tanh") * w.sum(),
    }.get(name) or (lambda x, w: getattr(ops, name)(x) * w.sum())
    assert torch.autograd.gradcheck(function, (x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "silu", "gelu", "elu", "sigmoid"])
def test_nan_stays_nan(name, level):
    x = torch.full((37,), float("nan"))
    with isa.limit(level):
        assert getattr(ops, name)(x).isnan().all()


@pytest.mark.parametrize("level", isa.available())
def test_elu_of_small_numbers_keeps_its_digits(level):
    x = -torch.logspace(-30, 1, 1000)
    with isa.limit(level):
        y = ops.elu(x)
    torch.testing.assert_close(y.double(), torch.expm1(x.double()), rtol=4e-7, atol=0)


@pytest.mark.parametrize("level", isa.available())
def test_gelu_of_every_bfloat16_is_rounded_well(level):
    """Within 0.55 units in the last place, as far as its polynomials go."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[(x.abs() < 12.5) & (x.abs() > 1e-30)]
    exact = 0.5 * x.double() * torch.erfc(-x.double() * 0.5**0.5)
    with isa.limit(level):
        error = (ops.gelu(x).double() - exact).abs()
    unit = 2.0 ** (exact.abs().log2().floor() - 7)
    assert float((error / unit).max()) < 0.55


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 5, 7), (2, 3, 2, 2, 2, 3)])
def test_any_rank_and_dense_order(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for view in (x, x.permute(tuple(reversed(range(x.dim()))))):
        y = ops.relu(view)
        assert torch.equal(y, F.relu(view))
        assert y.stride() == view.stride()
        torch.testing.assert_close(ops.prelu(view, torch.tensor([0.3])), F.prelu(view, torch.tensor([0.3])))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 32, 33])
def test_slopes_of_large_volumes(channels, layout):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, channels, 64, 64, 66, generator=generator).contiguous(memory_format=layout)
    weight = torch.rand(channels, generator=generator)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    grad = torch.randn(x.shape, generator=generator)
    ours, theirs = (f(x, weight) for f in (ops.prelu, F.prelu))
    assert torch.equal(ours, theirs)
    (dx, dw), (expected_dx, _) = (torch.autograd.grad(y, (x, weight), grad) for y in (ours, theirs))
    assert torch.equal(dx, expected_dx)
    exact = (x.detach().double().clamp(max=0) * grad).sum((0, 2, 3, 4))
    torch.testing.assert_close(dw.double(), exact, rtol=1e-5, atol=1e-2)


def test_bad_arguments():
    with pytest.raises(RuntimeError, match="input must be one of float32, float64, bfloat16, got int32"):
        ops.relu(X.int())
    with pytest.raises(TypeError, match="inplace must be a bool, got 1"):
        ops.relu(X, 1)
    with pytest.raises(RuntimeError, match="approximate must be 'none' or 'tanh', got 'fast'"):
        ops.gelu(X, "fast")
    with pytest.raises(TypeError, match="alpha must be a number"):
        ops.elu(X, "1")
    for weight in (torch.ones(2), torch.ones(3, 1), torch.ones(3).double()):
        with pytest.raises(RuntimeError, match="prelu: "):
            ops.prelu(X, weight)
        with pytest.raises(RuntimeError):
            F.prelu(X, weight)
    with pytest.raises(RuntimeError, match="does not belong"):
        torch.ops.volnet.prelu(X, torch.ones(2))
    with pytest.raises(RuntimeError, match="there is no function 'sine'"):
        torch.ops.volnet.activate(X, "sine", 0.0)


def test_autocast_is_that_of_torch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("relu", "silu", "gelu", "elu"):
            ours, theirs = (getattr(module, name)(X) for module in (ops, F))
            assert ours.dtype == theirs.dtype
        w = torch.tensor([0.5])
        assert ops.prelu(X, w).dtype == F.prelu(X, w).dtype


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.activate, (x, "silu", 0.0))
        torch.library.opcheck(torch.ops.volnet.prelu, (x, torch.ones(3, requires_grad=True)))
    torch.library.opcheck(torch.ops.volnet.activate, (X.permute(2, 4, 0, 3, 1), "relu", 0.0))
    torch.library.opcheck(torch.ops.volnet._activate_, (X.clone(), "relu", 0.0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ReLU", {"inplace": True}),
        ("LeakyReLU", {"negative_slope": 0.2}),
        ("PReLU", {"num_parameters": 3}),
        ("SiLU", {}),
        ("GELU", {"approximate": "tanh"}),
        ("ELU", {"alpha": 0.5}),
        ("Sigmoid", {}),
    ],
)
def test_modules_are_drop_ins(name, arguments):
    module, theirs = getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)
    assert isinstance(module, getattr(torch.nn, name))
    assert repr(module) == repr(theirs)
    theirs.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(X.clone()), theirs(X.clone()))
