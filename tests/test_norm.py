from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases.norm import ACTIVATIONS, followed
from tests.opinfo import opinfo_samples
from volnet import isa, nn, ops

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
NAMES = ["batch_norm", "instance_norm", "group_norm", "layer_norm"]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


X, C = randn(2, 6, 3, 4, 5), randn(6)


def ones_of(name):
    """The operator on X with weights of one, as a function of x alone."""
    function = getattr(ops, name)
    return {
        "batch_norm": lambda x, **after: function(x, None, None, training=True, **after),
        "instance_norm": lambda x, **after: function(x, **after),
        "group_norm": lambda x, **after: function(x, 3, **after),
        "layer_norm": lambda x, **after: function(x, x.shape[-2:], **after),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torch_on_its_own_samples(name, dtype):
    count = 0
    for sample in opinfo_samples(f"nn.functional.{name}", dtype):
        if sample.input.shape == (0,):
            continue  # torch takes even what has no axis of channels, if there is nothing to normalize
        results = []
        for function in (getattr(ops, name), getattr(F, name)):
            x, args, kwargs = copy.deepcopy((sample.input.detach(), sample.args, sample.kwargs))
            x.requires_grad_()
            y = function(x, *args, **kwargs)
            weight = torch.linspace(-1, 2, y.numel(), dtype=dtype).reshape(y.shape)
            # Running statistics are among the arguments.
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
            results.append([y, torch.autograd.grad(y, x, weight)[0], *tensors])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        count += 1
    assert count > 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("level", isa.available())
@pytest.mark.parametrize("name", NAMES)
def test_an_offset_costs_no_accuracy(name, level, layout):
    """Values around 1e4 that differ by about 1, the first voxel of them an outlier at 0."""
    x = (1e4 + randn(2, 6, 20, 21, 22)).contiguous(memory_format=layout)
    x[:, :, 0, 0, 0] = 0
    x.requires_grad_()
    grad = randn(*x.shape, seed=1)
    with isa.limit(level):
        y = ones_of(name)(x)
        (dx,) = torch.autograd.grad(y, x, grad)
    exact = x.detach().double().contiguous().requires_grad_()
    expected = {
        "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
        "instance_norm": F.instance_norm,
        "group_norm": lambda x: F.group_norm(x, 3),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[-2:]),
    }[name](exact)
    (expected_dx,) = torch.autograd.grad(expected, exact, grad.double())
    for ours, theirs in ((y, expected), (dx, expected_dx)):
        assert float((ours.detach().double() - theirs.detach()).norm() / theirs.detach().norm()) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 7), (4, 5, 6, 7), (3, 5, 2, 3, 4), (2, 5, 2, 3, 2, 3)])
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm", "group_norm"])
def test_other_ranks(name, shape, layout):
    if name == "instance_norm" and len(shape) == 2:
        pytest.skip("needs voxels")
    x = randn(*shape)
    if len(shape) == 4 and layout == torch.channels_last_3d:
        x = x.contiguous(memory_format=torch.channels_last)
    elif len(shape) == 5:
        x = x.contiguous(memory_format=layout)
    arguments = {"batch_norm": (None, None, C[:5], C[1:], True), "instance_norm": (None, None, C[:5], C[1:])}
    ours, theirs = (getattr(module, name)(x, *arguments.get(name, (1, C[:5], C[1:]))) for module in (ops, F))
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == x.stride()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_volume_gives_what_torch_gives(data):
    name = data.draw(st.sampled_from(["batch_norm", "instance_norm", "group_norm"]))
    groups = data.draw(st.integers(1, 4))
    channels = groups * data.draw(st.integers(1, 20))
    shape = [data.draw(st.integers(1, 3)), channels, *(data.draw(st.integers(1, n)) for n in (5, 6, 70))]
    shape[4] = max(shape[4], 2)
    activation = data.draw(st.sampled_from(list(ACTIVATIONS)))
    layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    x, residual, grad = (
        randn(*shape, seed=i).contiguous(memory_format=layout) for i, layout in enumerate(layouts)
    )
    if not data.draw(st.booleans()):
        residual = None
    arguments = {
        "batch_norm": (None, None, randn(channels), randn(channels, seed=1), True),
        "instance_norm": (None, None, randn(channels), randn(channels, seed=1)),
        "group_norm": (groups, randn(channels), randn(channels, seed=1)),
    }[name]
    x.requires_grad_()
    y = getattr(ops, name)(x, *arguments, activation=activation, residual=residual)
    exact = x.detach().double().contiguous().requires_grad_()
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    expected = followed(
        getattr(F, name)(exact, *double), None if residual is None else residual.double(), activation
    )
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    assert x.shape[1] == 1 or y.is_contiguous(memory_format=layouts[0])
    (dx,) = torch.autograd.grad(y, x, grad)
    (expected_dx,) = torch.autograd.grad(expected, exact, grad.double().contiguous())
    # Where an activation bends and a value is zero but for rounding, either slope is right.
    far = expected.detach().abs() > 1e-4 if activation in ("relu", "leaky_relu") else torch.tensor(True)
    if bool(far.all()) or activation not in ("relu", "leaky_relu"):
        scale = 1 + expected_dx.abs().max()
        torch.testing.assert_close(dx.double() / scale, expected_dx / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_running_statistics_move_as_in_torch(name, dtype, layout):
    x = randn(3, 5, 4, 5, 6, dtype=torch.float64).to(dtype).contiguous(memory_format=layout)
    stored = torch.float64 if dtype == torch.float64 else torch.float32
    results = []
    for module in (ops, F):
        mean, variance = randn(5, seed=1).to(stored), randn(5, seed=2).to(stored) ** 2
        for momentum in (0.1, 0.4):
            if name == "batch_norm":
                y = module.batch_norm(x, mean, variance, training=True, momentum=momentum)
            else:
                y = module.instance_norm(x, mean, variance, momentum=momentum)
        results.append((mean, variance, y))
    # torch's own statistics of bfloat16 are rounded.
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {}
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_known_statistics_are_applied_without_a_pass_over_the_volume():
    x, weight = randn(2, 4, 5, 6, 7), randn(6, 4, 3, 3, 3, seed=1)
    y, mean, variance = ops.conv3d_with_statistics(x, weight)
    moments = {name: calls for name, _, calls in isa.kernels() if name.startswith("norm_moments")}
    applied = torch.ops.volnet._norm_apply(
        y, mean.double(), variance.double(), C, None, None, 1e-5, "relu", 0.0
    )
    assert moments == {name: calls for name, _, calls in isa.kernels() if name in moments}
    torch.testing.assert_close(applied, F.relu(F.instance_norm(y, None, None, C)))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "gelu_tanh", None])
@pytest.mark.parametrize("name", [*NAMES, "trained_batch_norm"])
def test_second_derivatives(name, activation):
    x = randn(2, 4, 1, 2, 3, dtype=torch.float64).requires_grad_()
    w, b = (
        randn(4 if name != "layer_norm" else 3, seed=i, dtype=torch.float64).requires_grad_() for i in (1, 2)
    )
    r = randn(2, 4, 1, 2, 3, seed=3, dtype=torch.float64).requires_grad_()
    mean, variance = randn(4, seed=4).double(), randn(4, seed=5).double() ** 2
    function = {
        "batch_norm": lambda x, w, b, r, **a: ops.batch_norm(x, None, None, w, b, True, residual=r, **a),
        "trained_batch_norm": lambda x, w, b, r, **a: ops.batch_norm(
            x, mean, variance, w, b, residual=r, **a
        ),
        "instance_norm": lambda x, w, b, r, **a: ops.instance_norm(x, None, None, w, b, residual=r, **a),
        "group_norm": lambda x, w, b, r, **a: ops.group_norm(x, 2, w, b, residual=r, **a),
        "layer_norm": lambda x, w, b, r, **a: ops.layer_norm(x, (3,), w, b, residual=r, **a),
    }[name]
    assert torch.autograd.gradgradcheck(
        lambda *v: function(*v, activation=activation), (x, w, b, r), fast_mode=True
    )
    assert torch.autograd.gradgradcheck(
        lambda x: function(x, None, None, None, activation=activation), x, fast_mode=True
    )


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("batch_norm", (X, None, None), {}),
        ("batch_norm", (X, C, None), {}),
        ("batch_norm", (X, C[:2], C), {}),
        ("batch_norm", (X, None, None, C[:2], None, True), {}),
        ("batch_norm", (X, None, None, None, C[:2], True), {}),
        ("batch_norm", (X, C, C), {"eps": -1.0}),
        ("batch_norm", (X, C, C), {"momentum": "fast"}),
        ("batch_norm", (X, None, None, C.double(), C.double(), True), {}),
        ("batch_norm", (X[:1, :, :1, :1, :1], None, None, None, None, True), {}),
        ("batch_norm", ([1.0], C, C), {}),
        ("instance_norm", (X, C), {}),
        ("instance_norm", (X,), {"use_input_stats": False}),
        ("instance_norm", (X, None, None, C[:2]), {}),
        ("instance_norm", (X[:, :, :1, :1, :1],), {}),
        ("group_norm", (X, 4), {}),
        ("group_norm", (X, -1), {}),
        ("group_norm", (X, 2.0), {}),
        ("group_norm", (X, 2, C[:2]), {}),
        ("group_norm", (X, 2, None, C.double()), {}),
        ("group_norm", (X[0, 0, 0, 0], 1), {}),
        ("group_norm", (X, 2), {"eps": "small"}),
        ("group_norm", (X[:1, :, :1, :1, :1], 6), {}),
        ("group_norm", (X.int(), 2), {}),
        ("layer_norm", (X, (6,)), {}),
        ("layer_norm", (X, ()), {}),
        ("layer_norm", (X, 5), {}),
        ("layer_norm", (X, (5,), C), {}),
        ("layer_norm", (X, (5,), None, C), {}),
        ("layer_norm", (X, (1, 2, 6, 3, 4, 5)), {}),
        ("layer_norm", (X, ("5",)), {}),
    ],
)
def test_bad_arguments_raise_as_in_torch(name, args, kwargs):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as theirs:
        getattr(F, name)(*args, **kwargs)
    expected = theirs.type if theirs.type in (TypeError, ValueError) else RuntimeError
    with pytest.raises(expected, match=f"{name}: "):
        getattr(ops, name)(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_is_checked(name):
    function = ones_of(name)
    with pytest.raises(ValueError, match=r"activation must be None or one of .*, got 'prelu'"):
        function(X, activation="prelu")
    with pytest.raises(TypeError, match="negative_slope must be a number, got 'steep'"):
        function(X, activation="leaky_relu", negative_slope="steep")
    with pytest.raises(RuntimeError, match=r"residual must be like the result.*got \(2, 6, 3, 4, 4\)"):
        function(X, residual=X[..., 1:])
    with pytest.raises(RuntimeError, match="residual must be like the result"):
        function(X, residual=X.double())


def test_the_message_names_the_value():
    with pytest.raises(RuntimeError, match=r"num_groups=4 for shape \(2, 6, 3, 4, 5\)"):
        ops.group_norm(X, 4)


def test_direct_calls_are_checked_too():
    norm, statistics = torch.ops.volnet.norm, torch.zeros(1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"x must be \[N, C, D, H, W\]"):
        norm(X[0], None, None, None, 1, True, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="6 channels cannot be split into 4 groups"):
        norm(X, None, None, None, 4, True, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="statistics for each image"):
        norm(X, None, None, None, 3, False, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="statistics for each image"):
        torch.ops.volnet._norm_apply(X, statistics, statistics, None, None, None, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="residual must be like x"):
        norm(X, None, None, X[:1], 3, True, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="no activation 'tanh'"):
        norm(X, None, None, None, 3, True, 1e-5, "tanh", 0.0)
    with pytest.raises(RuntimeError, match="must have 6 values"):
        norm(X, C[:2], None, None, 3, True, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError, match="has no rows of 7 values"):
        torch.ops.volnet.layer_norm(X, 7, None, None, None, 1e-5, "none", 0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_takes_weights_of_float32(layout):
    x = X.bfloat16().contiguous(memory_format=layout)
    w, b = (randn(6, seed=i).requires_grad_() for i in (1, 2))
    y = ops.group_norm(x, 2, w, b)
    expected = F.group_norm(x.double(), 2, w.double(), b.double())
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2**-8)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), (w, b)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype_as_in_torch(name, dtype):
    theirs = {
        "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
        "instance_norm": F.instance_norm,
        "group_norm": lambda x: F.group_norm(x, 3),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[-2:]),
    }[name]
    x = X.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ones_of(name)(x).dtype == theirs(x).dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_opcheck(layout):
    x, r = (randn(2, 6, 3, 4, 5, seed=i).contiguous(memory_format=layout).requires_grad_() for i in (0, 1))
    w, b = (randn(6, seed=i).requires_grad_() for i in (2, 3))
    mean = torch.zeros(1, 6, dtype=torch.float64)
    torch.library.opcheck(torch.ops.volnet.norm, (x, w, b, r, 3, True, 1e-5, "relu", 0.0))
    torch.library.opcheck(torch.ops.volnet._norm_apply, (x, mean, mean + 1, w, b, r, 1e-5, "silu", 0.0))
    row = randn(5, seed=4).requires_grad_()
    torch.library.opcheck(torch.ops.volnet.layer_norm, (x, 5, row, None, r, 1e-5, "relu", 0.0))


MODULES = [
    ("BatchNorm3d", (6,), {}),
    ("BatchNorm3d", (6,), {"momentum": None}),
    ("BatchNorm3d", (6,), {"affine": False, "track_running_stats": False, "eps": 1e-3}),
    ("InstanceNorm3d", (6,), {}),
    ("InstanceNorm3d", (6,), {"affine": True, "track_running_stats": True, "momentum": 0.3}),
    ("GroupNorm", (3, 6), {"eps": 1e-3}),
    ("GroupNorm", (3, 6), {"affine": False}),
    ("LayerNorm", ((4, 5),), {}),
    ("LayerNorm", (5,), {"bias": False}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), MODULES)
def test_modules_are_drop_ins(name, args, kwargs):
    ours, theirs = (getattr(module, name)(*args, **kwargs) for module in (nn, torch.nn))
    assert isinstance(ours, getattr(torch.nn, name))
    assert repr(ours) == repr(theirs)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    for mode in (True, True, False):
        for module in (ours, theirs):
            module.train(mode)
        torch.testing.assert_close(ours(X), theirs(X))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize(("name", "args", "kwargs"), MODULES)
def test_modules_apply_an_activation(name, args, kwargs):
    module = getattr(nn, name)(*args, activation="leaky_relu", negative_slope=0.3, **kwargs)
    plain = getattr(torch.nn, name)(*args, **kwargs)
    torch.testing.assert_close(module(X), F.leaky_relu(plain(X), 0.3))
    assert "activation='leaky_relu'" in repr(module)
    if name != "InstanceNorm3d":
        torch.testing.assert_close(module(X, residual=2 * X), F.leaky_relu(plain(X) + 2 * X, 0.3))


def test_instance_norm_of_one_image_without_a_batch():
    torch.testing.assert_close(nn.InstanceNorm3d(6)(X[0]), torch.nn.InstanceNorm3d(6)(X[0]))
