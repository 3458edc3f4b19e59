from __future__ import annotations

import math

import pytest
import torch

from tests.opinfo import opinfo_samples
from volnet import isa, memory, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
X = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_torch_on_its_own_samples(dtype):
    count = 0
    for sample in opinfo_samples("argmax", dtype):
        arguments = {"dim": None, **sample.kwargs}
        ours = ops.argmax(sample.input, dtype=torch.int64, **arguments)
        theirs = torch.argmax(sample.input, **arguments)
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        count += 1
    assert count > 0


@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 20, 300])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ties_nan_and_infinities(layout, channels, dtype, level):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-3, 4, (1, channels, 4, 8, 9), generator=generator).to(dtype)
    for value in (math.nan, -math.inf, math.inf):
        x[torch.rand(x.shape, generator=generator) < 1 / channels] = value
    x[..., 0] = -math.inf
    x[..., 1] = math.nan
    x = x.contiguous(memory_format=layout)
    with isa.limit(level):
        labels = ops.argmax(x, dtype=torch.int16)
    assert torch.equal(labels.long(), torch.argmax(x, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_no_more_memory_than_the_labels(layout):
    x = torch.zeros(1, 4, 64, 64, 64).contiguous(memory_format=layout)
    memory.trim()
    memory.reset_peak()
    before = memory.stats()["in_use"]
    labels = ops.argmax(x)
    assert labels.dtype == torch.uint8
    assert labels.is_contiguous()
    assert memory.stats()["peak"] - before < 2 * labels.nbytes


def test_as_many_channels_as_the_labels_have_values():
    x = torch.zeros(1, 257, 1, 1, 2)
    x[:, 255] = 1
    assert torch.equal(ops.argmax(x[:, :256]), torch.full((1, 1, 1, 2), 255, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match=r"257 channels do not fit dtype torch.uint8"):
        ops.argmax(x)
    with pytest.raises(RuntimeError, match=r"257 channels do not fit Byte"):
        torch.ops.volnet.argmax(x, 1, False, torch.uint8)
    x = torch.zeros(1, 2**15 + 1)
    x[0, 2**15 - 1] = 1
    assert ops.argmax(x[:, :-1], dtype=torch.int16) == 2**15 - 1
    with pytest.raises(RuntimeError, match=r"32769 channels do not fit dtype torch.int16"):
        ops.argmax(x, dtype=torch.int16)


def test_has_no_gradient():
    assert not ops.argmax(X.clone().requires_grad_()).requires_grad


def test_bad_arguments():
    for dim in (5, -6):
        for argmax in (ops.argmax, torch.argmax):
            with pytest.raises(IndexError, match=str(dim)):
                argmax(X, dim)
    for argmax in (ops.argmax, torch.argmax):
        with pytest.raises(IndexError):
            argmax(X[:, :0], 1)
        with pytest.raises(IndexError):
            argmax(X[:0], None)
        with pytest.raises(IndexError):
            argmax(torch.tensor(1.0), 1)
        with pytest.raises(TypeError):
            argmax(X, 0.5)
    with pytest.raises(RuntimeError, match=r"dtype must be uint8, int16, int32 or int64, got torch\.float32"):
        ops.argmax(X, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype, got 'uint8'"):
        ops.argmax(X, dtype="uint8")
    with pytest.raises(TypeError, match="keepdim must be a bool, got 1"):
        ops.argmax(X, 1, 1)
    with pytest.raises(RuntimeError, match="got int32"):
        ops.argmax(X.int())


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout)
        torch.library.opcheck(torch.ops.volnet.argmax, (x, 1, False, torch.uint8))
    torch.library.opcheck(torch.ops.volnet.argmax, (X.permute(2, 4, 0, 3, 1), 2, True, torch.int64))
    torch.library.opcheck(torch.ops.volnet.argmax, (X[..., ::2], 3, False, torch.int64))
