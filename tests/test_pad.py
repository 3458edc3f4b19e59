from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.common_methods_invocations import op_db

from volnet import nn, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
MODES = ["constant", "reflect", "replicate", "circular"]
X = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", [*MODES, "replicate_negative"])
def test_agrees_with_torch_on_its_own_samples(mode):
    (info,) = [op for op in op_db if op.name == "nn.functional.pad" and op.variant_test_name == mode]
    count = 0
    for sample in info.sample_inputs("cpu", torch.float64):
        x = sample.input.detach().requires_grad_()
        ours, theirs = (f(x, *sample.args, **sample.kwargs) for f in (ops.pad, F.pad))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        weight = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).reshape(ours.shape)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)))
        count += 1
    assert count > 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_pads_give_what_torch_gives(data):
    mode = data.draw(st.sampled_from(MODES))
    shape = [data.draw(st.integers(1, n)) for n in (2, 18, 4, 5, 40)]
    pads = [data.draw(st.integers(-3, 5)) for _ in range(6)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(shape, generator=generator)
    x = x.contiguous(memory_format=data.draw(st.sampled_from(LAYOUTS))).requires_grad_()
    pairs = [(pads[2 * i], pads[2 * i + 1], shape[4 - i]) for i in range(3)]
    if mode == "circular" and any(max(a, b) > n + min(a, 0) + min(b, 0) for a, b, n in pairs):
        # Here torch shows memory that nobody has written.
        with pytest.raises(RuntimeError, match="does not fit"):
            ops.pad(x, pads, mode)
        return
    try:
        expected = F.pad(x, pads, mode)
    except (RuntimeError, IndexError):
        with pytest.raises(RuntimeError):
            ops.pad(x, pads, mode)
        return
    y = ops.pad(x, pads, mode)
    assert torch.equal(y, expected)
    if y.numel() == 0:
        return  # torch has no gradient of that
    weight = torch.randn(y.shape, generator=generator)
    torch.testing.assert_close(*(torch.autograd.grad(result, x, weight)[0] for result in (y, expected)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers(dtype, layout):
    x = (100 * X).to(dtype).contiguous(memory_format=layout)
    for view in (x, x[..., ::2]):
        ours, theirs = (f(view, (1, 2, -1, 0, 3, 1), value=7) for f in (ops.pad, F.pad))
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)
    assert torch.equal(ops.crop3d(x, (1, 0, 2), (2, 5, 3)), x[..., 1:3, :, 2:5])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1e30])
def test_special_values(value):
    torch.testing.assert_close(
        ops.pad(X, (1, 1), value=value), F.pad(X, (1, 1), value=value), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("mode", MODES)
def test_volumes_larger_than_the_caches(mode, channels, layout):
    generator = torch.Generator().manual_seed(1)
    size = (64, 64, 80) if channels == 32 else (150, 150, 151)
    x = torch.randn(1, channels, *size, generator=generator).contiguous(memory_format=layout).requires_grad_()
    pads = (3, 1, 1, 0, 2, 2)
    ours, theirs = (f(x, pads, mode) for f in (ops.pad, F.pad))
    assert torch.equal(ours, theirs)
    grad = torch.randn(ours.shape, generator=generator).contiguous(memory_format=layout)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)))


@pytest.mark.parametrize(
    ("pads", "mode"),
    [
        ((6, 0, 0, 0, 0, 0), "reflect"),
        ((7, 0, 0, 0, 0, 0), "circular"),
        ((-3, -4, 0, 0, 0, 0), "replicate"),
        ((-7, 3), "constant"),
        ((1, 2, 3), "constant"),
        ((1,) * 12, "constant"),
        ((1,) * 6, "mirror"),
    ],
)
def test_bad_pads_raise_as_in_torch(pads, mode):
    with pytest.raises(RuntimeError) as theirs:
        F.pad(X, pads, mode)
    with pytest.raises(theirs.type):
        ops.pad(X, pads, mode)


def test_the_message_names_the_value():
    with pytest.raises(RuntimeError, match=r"\(6, 0\) does not fit axis 4 of input .*\(2, 3, 4, 5, 6\)"):
        ops.pad(X, (6, 0, 0, 0, 0, 0), "reflect")
    with pytest.raises(RuntimeError, match=r"start=\(1, 1, 1\), size=\(4, 4, 4\) is not inside"):
        ops.crop3d(X, 1, 4)
    with pytest.raises(RuntimeError, match="is not inside"):
        ops.crop3d(X, -1, 2)
    with pytest.raises(RuntimeError, match="does not fit an input"):
        torch.ops.volnet.pad(X, [6, 0, 0, 0, 0, 0], "reflect", 0.0)
    with pytest.raises(RuntimeError, match="does not belong"):
        torch.ops.volnet._pad_backward(X, [2, 3, 4, 5, 6], [1] * 6, "reflect", False)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives(mode):
    x = X.double()[:1, :2, :3, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: ops.pad(x, (1, 2, 0, 1, 2, -1), mode) ** 2, x, fast_mode=True
    )


@pytest.mark.parametrize("mode", MODES)
def test_autocast_is_that_of_torch(mode):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (f(X.bfloat16(), (1,) * 6, mode) for f in (ops.pad, F.pad))
    assert ours.dtype == theirs.dtype


def test_torch_opcheck():
    for layout in LAYOUTS:
        x = X.clone(memory_format=layout).requires_grad_()
        torch.library.opcheck(torch.ops.volnet.pad, (x, [1, 2, 0, 1, -1, 1], "reflect", 0.0))


@pytest.mark.parametrize("name", ["ConstantPad3d", "ReflectionPad3d", "ReplicationPad3d", "CircularPad3d"])
def test_modules_are_drop_ins(name):
    arguments = ((1, 2, 0, 1, 2, 1), 0.5) if name == "ConstantPad3d" else (2,)
    module, theirs = (getattr(package, name)(*arguments) for package in (nn, torch.nn))
    assert isinstance(module, getattr(torch.nn, name))
    assert repr(module) == repr(theirs)
    assert torch.equal(module(X), theirs(X))
