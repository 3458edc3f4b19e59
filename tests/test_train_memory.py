"""Training within a budget of memory."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import volnet
from tests.test_saving import Blocks, distance, gradients
from volnet import memory
from volnet.train.memory import accumulate, fit_memory, micro_batches, parse_bytes, plan_memory


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.drop, self.more = Blocks(channels=16), nn.Dropout3d(0.5), Blocks(channels=16)
        self.between = nn.Conv3d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.more(self.between(self.drop(self.blocks(x))))
        return y


def peak_of(model: nn.Module, x: Tensor) -> int:
    """Of the pool, whose blocks are all the volumes of these networks, beside what is there before."""
    gradients(model, x)
    for p in model.parameters():
        p.grad = None
    gc.collect()
    memory.trim()
    memory.reset_peak()
    before = memory.stats()["in_use"]
    (model(x) ** 2).mean().backward()
    return memory.stats()["peak"] - before


def test_the_peak_is_predicted() -> None:
    torch.manual_seed(0)
    model, x = Blocks(channels=16), torch.randn(2, 1, 48, 48, 48)
    predicted = plan_memory(model, x)
    assert peak_of(volnet.optimize(model), x) == pytest.approx(predicted.peak, rel=0.15)
    assert predicted.recomputed == ()
    smallest = plan_memory(model, x, 1)
    assert smallest.peak < 0.95 * predicted.peak
    fitted = fit_memory(model, x, smallest.peak)
    assert peak_of(fitted, x) == pytest.approx(smallest.peak, rel=0.15)
    assert peak_of(fitted, x) < 0.95 * peak_of(volnet.optimize(model), x)
    assert "computed twice" in str(fitted.memory_plan)
    assert "convs.0" in str(fitted.memory_plan)


def test_a_fitted_network_trains_as_the_original_with_dropouts_masks() -> None:
    torch.manual_seed(0)
    model, x = WithDropout(), torch.randn(1, 1, 24, 24, 24)
    found = []
    for network in (volnet.optimize(model), fit_memory(model, x, plan_memory(model, x, 1).peak)):
        torch.manual_seed(7)
        found.append(gradients(network, x))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    model, x = Blocks(), torch.randn(1, 1, 16, 16, 16)
    with pytest.raises(volnet.OutOfMemoryError, match=r"smallest that works is .* \((\d+) bytes\)") as info:
        fit_memory(model, x, 1000)
    smallest = int(str(info.value).split("(")[1].split(" bytes")[0])
    assert fit_memory(model, x, smallest).memory_plan.peak == smallest
    for wrong in ("8 cows", 0, "-1GiB"):
        with pytest.raises(ValueError, match="budget"):
            fit_memory(model, x, wrong)
    assert parse_bytes("1.5 KiB") == 1536


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_micro_batches_give_the_gradients_of_the_batch(norm: str) -> None:
    torch.manual_seed(0)
    model = volnet.optimize(Blocks(norm))
    x, target = torch.randn(5, 1, 12, 12, 12), torch.randn(5, 2, 12, 12, 12)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    found, losses = [], []
    for size in (5, 2):
        model.zero_grad()
        losses.append(accumulate(model, (x, target), size, loss))
        found.append([p.grad.double() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(*losses, rtol=1e-5)
    assert distance(found[1], found[0]) < 1e-4


def test_micro_batches_refuse_what_they_would_change() -> None:
    x = torch.randn(4, 1, 8, 8, 8)
    model = Blocks("batch")
    with pytest.raises(ValueError, match=r"norms\.0 is a BatchNorm3d in training"):
        accumulate(model, x, 2, lambda m, x: m(x).mean())
    accumulate(model, x, 4, lambda m, x: m(x).mean())
    accumulate(model.eval(), x, 2, lambda m, x: m(x).mean())
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        next(micro_batches(x, 0))
    with pytest.raises(ValueError, match=r"one number of samples, got \[2, 4\]"):
        next(micro_batches((x, x[:2]), 1))
