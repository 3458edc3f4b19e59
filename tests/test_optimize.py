"""Networks on volnet's operators against themselves in float64, and what may be done to an optimized one."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import volnet
from tests.networks import NETWORKS, Network, volume

pytestmark = pytest.mark.filterwarnings("ignore")  # Dynamo's and the networks' own


@pytest.fixture(autouse=True)
def _from_scratch() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for such small volumes
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def difference(result: Any, expected: Any) -> float:
    """Relative L2, the largest of all tensors."""
    pairs = zip(tensors(result), tensors(expected), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms that do something in eval()."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 0.4)
    return model


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_published_network_gives_the_same_answer(network: Network) -> None:
    model, x = with_statistics(network.make()).eval(), volume(network.size)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        plain = model(x)
        optimized = volnet.optimize(model)
        result = optimized(x)
        assert type(result) is type(plain)
        assert difference(result, expected) < 5e-5
        assert [y.stride() for y in tensors(result)] == [y.stride() for y in tensors(plain)]
        ran = [row.operator for row in volnet.explain(optimized, x).rows]
        assert not [name for name in ran if name in ("aten.convolution", "aten.native_batch_norm")]


SMALL = {n.name: n for n in NETWORKS if n.name in ("DynUNet", "UNet, batch norm", "SegResNet", "BasicUNet")}


@pytest.mark.parametrize("name", SMALL)
def test_highest_precision_is_as_close_as_torch(name: str) -> None:
    model, x = with_statistics(SMALL[name].make()).eval(), volume(SMALL[name].size)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        result = volnet.optimize(model, precision="highest")(x)
        assert difference(result, expected) < 3 * difference(model(x), expected)
    assert volnet.get_precision() == "high"


@pytest.mark.parametrize("name", SMALL)
def test_training_gives_the_same_gradients_and_statistics(name: str) -> None:
    model, x = SMALL[name].make().train(), volume(SMALL[name].size)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    exact = copy.deepcopy(model).double()
    optimized = volnet.optimize(copy.deepcopy(model), precision="highest")

    def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
        net(x).square().mean().backward()
        return {k: p.grad for k, p in net.named_parameters() if p.grad is not None}

    expected, result = gradients(exact, x.double()), gradients(optimized, x)
    assert expected.keys() == result.keys()
    scale = max(float(g.norm()) for g in expected.values())
    for key, gradient in expected.items():
        error, size = float((result[key].double() - gradient).norm()), float(gradient.norm())
        assert error < 1e-4 * max(size, 1e-2 * scale), key
    for key, buffer in exact.named_buffers():
        torch.testing.assert_close(optimized.get_buffer(key).double(), buffer.double(), rtol=1e-4, atol=1e-6)


def conv_norm_net() -> nn.Sequential:
    block = [nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.ReLU(), *block)


X = (1, 1, 7, 8, 9)


def edit_data(model: nn.Sequential) -> None:
    model[0].weight.data.add_(torch.randn(4, 1, 3, 3, 3))


def edit_numpy(model: nn.Sequential) -> None:
    model[3].weight.detach().numpy()[...] = 0.5


def edit_scale(model: nn.Sequential) -> None:
    model[4].weight.data.add_(1)


def edit_statistics(model: nn.Sequential) -> None:
    model[4].running_var.mul_(3)


def edit_parameter(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.randn(4, 1, 3, 3, 3))


def edit_layer(model: nn.Sequential) -> None:
    model[5] = nn.SiLU()


def edit_state(model: nn.Sequential) -> None:
    model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})


def edit_mode(model: nn.Sequential) -> None:
    model.train()


def edit_hook(model: nn.Sequential) -> None:
    model[1].register_forward_hook(lambda module, args, output: output + 1)


EDITS = [v for k, v in globals().items() if k.startswith("edit_")]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("of_original", [False, True])
def test_what_is_changed_afterwards_is_noticed(edit: Callable[[nn.Module], None], of_original: bool) -> None:
    model = with_statistics(conv_norm_net()).eval()
    optimized, x = volnet.optimize(model), volume(X)
    with torch.no_grad():
        for _ in range(3):  # weights are packed, and kept, by then
            before = optimized(x)
        edit(model if of_original else optimized)
        optimized.train(model.training or optimized.training)
        model.train(optimized.training)
        result = optimized(x)
        expected = copy.deepcopy(model)(x)
    assert difference(result, expected) < 5e-5
    assert difference(result, before) > 1e-3


def test_it_is_a_model_of_its_class_and_shares_parameters() -> None:
    model = conv_norm_net()
    optimized = volnet.optimize(model)
    assert isinstance(optimized, nn.Sequential)
    assert optimized.state_dict().keys() == model.state_dict().keys()
    assert all(a is b for a, b in zip(optimized.parameters(), model.parameters(), strict=True))
    assert "OptimizedSequential" in repr(optimized)
    assert len(optimized) == len(model)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "optimize again": volnet.optimize,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_are_optimized_too(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model, x = with_statistics(conv_norm_net()).eval(), volume(X)
    again = duplicate(volnet.optimize(model, precision="highest"))
    with torch.no_grad():
        assert difference(again(x), model(x)) < 5e-5
        assert volnet.explain(again, x).graphs == 1


def test_five_sizes_need_three_graphs_at_most() -> None:
    model = conv_norm_net().eval()
    optimized = volnet.optimize(model)
    with torch.no_grad():
        for size in ((1, 1, 7, 8, 9), (1, 1, 8, 9, 10), (2, 1, 5, 6, 7), (1, 1, 9, 4, 11), (3, 1, 5, 5, 5)):
            x = volume(size)
            assert difference(optimized(x), model(x)) < 5e-5
    assert len(optimized.__dict__["_volnet_backend"].graphs) <= 3


def test_an_example_captures_and_leaves_no_trace() -> None:
    model = conv_norm_net().train()
    before = copy.deepcopy(model.state_dict())
    x = volume(X)
    state = torch.get_rng_state()
    optimized = volnet.optimize(model, x)
    assert optimized.__dict__["_volnet_backend"].graphs
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for example in ((volume(X),), {"input": volume(X)}):
        volnet.optimize(model, example)


def test_bfloat16_storage_gives_results_in_the_callers_dtype() -> None:
    model, x = conv_norm_net().eval(), volume(X)
    with torch.no_grad():
        optimized = volnet.optimize(model, dtype=torch.bfloat16)
        result = optimized(x)
        assert result.dtype == torch.float32
        assert difference(result, model(x)) < 2e-2
        assert model[0].weight.dtype == torch.float32
        assert copy.deepcopy(optimized)(x).dtype == torch.float32


def test_a_half_precision_model_runs_as_it_is() -> None:
    model, x = conv_norm_net().eval().bfloat16(), volume(X).bfloat16()
    with torch.no_grad():
        assert difference(volnet.optimize(model)(x), model(x)) < 2e-2
    model, x = model.half(), x.half()  # which volnet does not take: torch runs it
    with torch.no_grad():
        assert difference(volnet.optimize(model)(x), model(x)) < 1e-2


def test_autocast_computes_as_torch_does() -> None:
    model, x = conv_norm_net().eval(), volume(X)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result, expected = volnet.optimize(model)(x), model(x)
    assert result.dtype == expected.dtype
    assert difference(result, expected) < 2e-2


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return F.relu(y) if float(y.sum()) > 0 else F.relu(-y)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(4, 4, 3, padding=1)
        self.b = nn.Conv3d(4, 4, 3, padding=1)
        self.b.weight = self.a.weight
        self.norm = nn.InstanceNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x))
        return F.relu(self.norm(self.b(y)) + y)


class InPlace(nn.Module):
    """What is read after a change in place sees the change, through views as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.conv(x)
        before = y * 2
        view = y.view(-1)
        z = F.relu(y, inplace=True)
        z += 1
        return before + y, view, z


class Aliases(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[:, :2]
        y += 1  # changes x, which is the caller's
        return F.max_pool3d(x, 2)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, 0])


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, *, twice: bool = False) -> dict[str, Any]:
        y = self.conv(x)
        return {"y": [y, self.conv(y) if twice else None], "x": x}


ODD = {
    "data-dependent": (DataDependent, (1, 1, 8, 8, 8)),
    "shared parameters": (Shared, (2, 4, 6, 7, 8)),
    "in place": (InPlace, (1, 4, 6, 7, 8)),
    "aliases": (Aliases, (1, 4, 6, 7, 8)),
    "2-D": (Flat, (1, 4, 6, 7, 8)),
    "structured results": (Structured, (1, 4, 6, 7, 8)),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("channels_last", [False, True])
def test_odd_models_give_the_same_answer(kind: str, channels_last: bool) -> None:
    make, size = ODD[kind]
    model = make().eval()
    x = volume(size)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if kind == "in place":
            pytest.skip("its view needs the plain layout")
    with torch.no_grad():
        given, theirs = x.clone(), x.clone()
        expected = model(theirs)
        result = volnet.optimize(model)(given)
    assert difference(result, expected) < 5e-5
    assert difference(given, theirs) < 1e-6


def test_what_cannot_be_optimized_raises() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        volnet.optimize(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ScriptModule"):
        volnet.optimize(torch.jit.trace(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2)))
    with pytest.raises(ValueError, match="got 'low'"):
        volnet.optimize(nn.ReLU(), precision="low")
    with pytest.raises(ValueError, match=r"got torch\.float16"):
        volnet.optimize(nn.ReLU(), dtype=torch.float16)


def test_torch_compile_knows_the_backend() -> None:
    model, x = with_statistics(conv_norm_net()).eval(), volume(X)
    compiled = torch.compile(model, backend="volnet")
    with torch.no_grad():
        assert difference(compiled(x), model(x)) < 5e-5
        assert volnet.explain(compiled, x).rules["fold_batch_norm"] == 1


def test_results_are_freed() -> None:
    model, x = conv_norm_net().eval(), volume(X)
    optimized = volnet.optimize(model)
    with torch.no_grad():
        for _ in range(3):
            optimized(x)
        gc.collect()
        in_use = volnet.memory.stats()["in_use"]
        for _ in range(5):
            optimized(x)
        gc.collect()
        assert volnet.memory.stats()["in_use"] == in_use


class JitIsinstance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool3d(x, 2)
        if torch.jit.isinstance([y], list[Tensor]) and torch.jit.isinstance(y, Tensor):
            y = F.relu(y)
        return y + 1


def test_jit_isinstance_of_a_class_breaks_no_graph() -> None:
    network = SMALL["BasicUNet"]
    model, x = network.make().eval(), volume(network.size)
    with torch.no_grad():
        assert volnet.explain(volnet.optimize(model), x).graphs == 1
        x = volume((1, 2, 4, 4, 4)) - 0.5
        assert difference(volnet.optimize(JitIsinstance())(x), JitIsinstance()(x)) < 1e-6


def test_gradients_have_the_precision_that_was_asked_for() -> None:
    model, x = nn.Conv3d(32, 32, 3, padding=1), torch.randn(1, 32, 12, 12, 12, requires_grad=True)
    exact = copy.deepcopy(model).double()
    expected = torch.autograd.grad(exact(x.double()).square().sum(), (exact.weight, x))
    errors = {}
    for precision in ("highest", "high"):
        optimized = volnet.optimize(model, precision=precision)
        result = torch.autograd.grad(optimized(x).square().sum(), (model.weight, x))
        errors[precision] = difference(result, expected)
    assert errors["highest"] < 1e-6 < errors["high"] < 5e-5
