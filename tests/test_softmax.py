from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
X = 2 * torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", ["", "with_dtype"])
def test_agrees_with_torch_on_its_own_samples(variant, dtype):
    count = 0
    for sample in opinfo_samples("softmax", dtype, variant):
        x = sample.input.detach().requires_grad_()
        ours, theirs = (f(x, *sample.args, **sample.kwargs) for f in (ops.softmax, F.softmax))
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()
        weight = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).reshape(x.shape).to(ours.dtype)
        # Told from a result of bfloat16 that may be rounded to the neighbour of torch's.
        bounds = {"rtol": 0.02, "atol": 1e-3} if ours.dtype == torch.bfloat16 else {}
        torch.testing.assert_close(*(torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)), **bounds)
        count += 1
    assert count > 0


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 16, 37])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_infinities_and_nan(layout, channels, dtype, level):
    x = torch.zeros(1, channels, 1, 1, 8, dtype=dtype).contiguous(memory_format=layout)
    inf, nan = math.inf, math.nan
    for voxel, values in enumerate(
        [(-inf, 1), (-inf, -inf), (inf, 1), (inf, inf), (nan, 1), (1, nan), (-200,)]
    ):
        x[0, : len(values), 0, 0, voxel] = torch.tensor(values, dtype=dtype)
    x[0, :, 0, 0, 7] = -inf
    with isa.limit(level):
        y = ops.softmax(x, 1)
    torch.testing.assert_close(y, F.softmax(x, 1), equal_nan=True)
    assert y[0, 0, 0, 0, 0] == 0, "a channel that is masked gets nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [2, 5, 14, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_volumes_that_are_stored_past_the_caches(layout, channels, dtype):
    generator = torch.Generator().manual_seed(1)
    shape = (1, channels, 2**24 // channels // 64**2 + 3, 64, 66)
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
    grad = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    ours, theirs = ops.softmax(x, 1), F.softmax(x, 1)
    assert ours.stride() == x.stride()
    torch.testing.assert_close(ours, theirs)
    ours_dx, theirs_dx = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    assert ours_dx.stride() == x.stride()
    # Differences of products, of which those of bfloat16 may be rounded to the neighbour of torch's.
    atol = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(ours_dx, theirs_dx, rtol=0.02, atol=atol)


def test_second_derivatives():
    x = X.double()[:1, :, :2, :2, :2].clone().requires_grad_()
    for dim in (1, 3):
        assert torch.autograd.gradcheck(lambda x, dim=dim: ops.softmax(x, dim), x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x, dim=dim: ops.softmax(x, dim), x, fast_mode=True)


def test_without_dim_torch_chooses_and_warns():
    for shape in ((5,), (2, 3, 2, 2, 2)):
        x = X.flatten()[: math.prod(shape)].reshape(shape)
        with pytest.warns(UserWarning, match="Implicit dimension choice") as warned:
            y = ops.softmax(x)
        assert warned[0].filename == __file__
        assert torch.equal(y, F.softmax(x, 0 if len(shape) == 1 else 1))


def test_dtype_is_that_of_the_computation():
    x = X.bfloat16().requires_grad_()
    y = ops.softmax(x, 1, dtype=torch.float32)
    torch.testing.assert_close(y, F.softmax(x, 1, dtype=torch.float32))
    assert torch.autograd.grad(y.square().sum(), x)[0].dtype == torch.bfloat16
    assert torch.equal(
        ops.softmax(torch.tensor([2, 2]), 0, dtype=torch.float64), torch.tensor([0.5, 0.5]).double()
    )


def test_bad_arguments():
    for dim in (5, -6):
        for softmax in (ops.softmax, F.softmax):
            with pytest.raises(IndexError, match=str(dim)):
                softmax(X, dim)
    for dim in ("1", 0.5, True):
        for softmax in (ops.softmax, F.softmax):
            with pytest.raises(TypeError):
                softmax(X, dim)
    with pytest.raises(RuntimeError, match="got int32"):
        ops.softmax(X.int(), 1)
    with pytest.raises(RuntimeError, match="got int32"):
        ops.softmax(X, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype, got 'float'"):
        ops.softmax(X, 1, dtype="float")
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        ops.softmax([1.0], 0)
    with pytest.raises(RuntimeError, match="no axis"):
        torch.ops.volnet.softmax(X, 5)


def test_autocast_is_that_of_torch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for x in (X, X.bfloat16(), X.double()):
            assert ops.softmax(x, 1).dtype == F.softmax(x, 1).dtype


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.softmax, (x, 1))
    torch.library.opcheck(torch.ops.volnet.softmax, (X.permute(2, 4, 0, 3, 1), 2))


def test_module_is_a_drop_in():
    module, theirs = nn.Softmax(dim=1), torch.nn.Softmax(dim=1)
    assert isinstance(module, torch.nn.Softmax)
    assert repr(module) == repr(theirs)
    torch.testing.assert_close(module(X), theirs(X))
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        nn.Softmax()(X)
