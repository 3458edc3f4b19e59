"""Losses of more than 2^31 logits: a small volume over and over, so that the loss is the small one's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from volnet import losses, memory

pytestmark = pytest.mark.large

SMALL, TIMES = (1, 2, 64, 64, 64), 4100  # 2.15e9 logits


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_losses(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(SMALL, generator=generator).bfloat16()
    labels = torch.randint(2, (1, *SMALL[2:]), generator=generator, dtype=torch.uint8)
    depth = SMALL[2] * TIMES
    x = torch.empty((1, 2, depth, *SMALL[3:]), dtype=torch.bfloat16, memory_format=layout)
    x.unflatten(2, (TIMES, SMALL[2])).copy_(small.unsqueeze(2))
    y = labels.repeat(1, TIMES, 1, 1)
    x.requires_grad_()

    exact = small.double().requires_grad_()
    expected = F.cross_entropy(exact, labels.long())
    (expected_grad,) = torch.autograd.grad(expected, exact)
    loss = losses.cross_entropy(x, y)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, x)
    for at in (0, 1, TIMES // 2, TIMES - 1):
        part = grad[:, :, at * SMALL[2] : (at + 1) * SMALL[2]].double() * TIMES
        torch.testing.assert_close(part, expected_grad, rtol=5e-3, atol=0)
    del grad
    y[0, -1, -1, -1] = 9
    with pytest.raises(RuntimeError, match=rf"label 9 of image 0 at voxel \[{depth - 1}, 63, 63\]"):
        losses.dice(x, y)
    memory.trim()


def test_hardest() -> None:
    x = torch.zeros(2**31 + 70_000)
    x[-3:] = torch.tensor([1.0, 3.0, 2.0])
    total, chosen = torch.ops.volnet.hardest(x, None, torch.tensor(2))
    assert total == 5
    assert chosen[-3:].tolist() == [False, True, True]
    assert chosen.count_nonzero() == 2
    memory.trim()
