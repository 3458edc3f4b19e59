from __future__ import annotations

import pytest
import torch

from tests.opinfo import opinfo_samples
from volnet import isa, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def calls():
    return sum(calls for name, _, calls in isa.kernels() if name.startswith("cat_"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_agrees_with_torch_on_its_own_samples(dtype):
    for sample in opinfo_samples("cat", dtype):
        expected = torch.cat(sample.input, *sample.args, **sample.kwargs)
        assert torch.equal(ops.cat(sample.input, *sample.args, **sample.kwargs), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [(32, 32), (3, 61), (16, 1, 15)])
def test_volumes_larger_than_the_caches(channels, dtype, layout):
    xs = [
        randn(1, c, 64, 65, 67, seed=i).to(dtype).contiguous(memory_format=layout).requires_grad_()
        for i, c in enumerate(channels)
    ]
    before = calls()
    ours, theirs = ops.cat(xs, 1), torch.cat(xs, 1)
    assert calls() > before
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)
    grad = randn(*ours.shape, seed=9).to(dtype).contiguous(memory_format=layout)
    for a, b in zip(*(torch.autograd.grad(y, xs, grad) for y in (ours, theirs)), strict=True):
        assert torch.equal(a, b)


def test_layouts_that_differ():
    xs = [randn(2, 3, 4, 5, 6), randn(2, 4, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)]
    assert torch.equal(ops.cat(xs, 1), torch.cat(xs, 1))
    assert ops.cat(xs, -4).is_contiguous()


def test_one_tensor_twice_has_both_gradients():
    x = randn(1, 3, 2, 3, 4).requires_grad_()
    (dx,) = torch.autograd.grad((ops.cat([x, x], 1) * torch.arange(6.0).reshape(1, 6, 1, 1, 1)).sum(), x)
    assert torch.equal(dx, torch.tensor([3.0, 5, 7]).reshape(1, 3, 1, 1, 1).expand_as(x))


def test_second_derivatives():
    xs = [randn(1, c, 2, 2, 3, seed=c).double().requires_grad_() for c in (2, 3)]
    assert torch.autograd.gradgradcheck(lambda *xs: ops.cat(xs, 1) ** 2, xs, fast_mode=True)


def test_what_does_not_fit_raises_as_in_torch():
    for other in (randn(1, 3, 2, 2, 2), randn(2, 3, 2, 2, 3), randn(2, 3, 2, 2)):
        with pytest.raises(RuntimeError):
            ops.cat([randn(2, 3, 2, 2, 2), other], 1)
    with pytest.raises(RuntimeError, match="does not go with"):
        torch.ops.volnet.cat([randn(2, 3, 2, 2, 2), randn(2, 3, 2, 2, 3)], False)
    with pytest.raises((RuntimeError, ValueError)):
        ops.cat([], 1)


def test_autocast_promotes_as_in_torch():
    xs = [randn(1, 2, 2, 2, 2), randn(1, 2, 2, 2, 2).bfloat16()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inputs in (xs, xs[:1], xs[1:]):
            assert ops.cat(inputs, 1).dtype == torch.cat(inputs, 1).dtype


def test_torch_opcheck():
    xs = [randn(2, c, 3, 4, 5).requires_grad_() for c in (2, 3)]
    torch.library.opcheck(torch.ops.volnet.cat, (xs, False))
