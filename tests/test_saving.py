"""What an optimized network keeps for backward, and that its gradients are the same."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import volnet
from volnet import memory

NORMS = {
    "instance": lambda c: nn.InstanceNorm3d(c, affine=True),
    "group": lambda c: nn.GroupNorm(2, c),
    "batch": lambda c: nn.BatchNorm3d(c),
}
ACTIVATIONS = {"relu": nn.ReLU, "leaky": nn.LeakyReLU, "none": nn.Identity}


class Blocks(nn.Module):
    """Convolution, norm and activation, with a residual and with a skip as U-Nets have it."""

    def __init__(self, norm: str = "instance", activation: str = "relu", channels: int = 8) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv3d(1 if i == 0 else channels, channels, 3, padding=1) for i in range(4)
        )
        self.norms = nn.ModuleList(NORMS[norm](channels) for _ in range(4))
        self.act = ACTIVATIONS[activation]()
        self.down, self.up = nn.MaxPool3d(2), nn.ConvTranspose3d(channels, channels, 2, 2)
        self.last = nn.Conv3d(2 * channels, 2, 1)

    def block(self, i: int, x: Tensor) -> Tensor:
        return self.act(self.norms[i](self.convs[i](x)))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.block(1, self.block(0, x))
        x = self.block(2, self.down(skip))
        x = self.act(self.norms[3](self.convs[3](x)) + x)
        return self.last(torch.cat([self.up(x), skip], 1))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    (model(x) ** 2).mean().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def distance(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative L2 error; a convolution's bias before a norm has no gradient but rounding."""
    scale = max(float(e.norm()) for e in exact)
    assert len(ours) == len(exact)
    return max(
        float((a.double() - e).norm() / max(float(e.norm()), 1e-3 * scale))
        for a, e in zip(ours, exact, strict=True)
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_float64(norm: str, activation: str) -> None:
    torch.manual_seed(0)
    model = Blocks(norm, activation)
    exact = copy.deepcopy(model).double()
    x = torch.randn(2, 1, 12, 10, 14)
    expected = gradients(exact, x.double())
    optimized = volnet.optimize(model)
    # relu and leaky_relu turn at values that float32 rounds to the other side.
    assert distance(gradients(optimized, x), expected) < 1e-3
    for ours, theirs in zip(model.buffers(), exact.buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-5)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """What the pool holds between forward and backward, once weights are packed."""
    gradients(model, x)
    gc.collect()
    before = memory.stats()
    y = model(x)
    gc.collect()
    after = memory.stats()
    packed = after["packed_weights"] - before["packed_weights"]
    del y
    return after["in_use"] - before["in_use"] - packed


def test_a_block_keeps_one_volume() -> None:
    model = volnet.optimize(Blocks(channels=16))
    x = torch.randn(1, 1, 32, 32, 32)
    full = 16 * 32**3 * 4
    # Two results of convolutions at full size; an eighth of that two more, and the pooled volume with its
    # places; the network's own result. Not the four activations, nor what the last convolution reads.
    kept = 2 * full + 4 * full // 8 + full // 8
    assert kept_bytes(model, x) < 1.05 * kept


def test_saved_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = Blocks(channels=16)
    x = torch.randn(1, 1, 32, 32, 32)
    exact, half = volnet.optimize(model), volnet.optimize(model, saved_dtype=torch.bfloat16)
    assert torch.equal(exact(x), half(x))
    expected = gradients(exact, x)
    error = distance(gradients(half, x), expected)
    assert 0 < error < 5e-2  # of the worst parameter; most are below 1e-2
    with pytest.raises(ValueError, match="saved_dtype must be"):
        volnet.optimize(model, saved_dtype=torch.float16)


def test_a_weight_that_was_changed_before_backward_is_noticed() -> None:
    model = Blocks()
    optimized = volnet.optimize(model)
    loss = optimized(torch.randn(1, 1, 8, 8, 8)).sum()
    with torch.no_grad():
        model.convs[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        loss.backward()


def test_backward_twice_and_second_derivative() -> None:
    torch.manual_seed(0)
    model = Blocks(activation="none")
    optimized, x = volnet.optimize(model), torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    y = optimized(x)
    first, again = (torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    found = []
    for network in (optimized, model):
        (grad,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()


def test_a_users_checkpoint_decides_by_itself() -> None:
    torch.manual_seed(0)
    optimized, x = volnet.optimize(Blocks()), torch.randn(1, 1, 8, 8, 8)
    expected = gradients(optimized, x)
    again = gradients(Wrapped(optimized), x)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.model, x, use_reentrant=False)
        return y
