"""volnet.explain: which operators ran, for which layer, by which kernel, with how much work."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from volnet import explain, isa, nn, ops


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(16, 16, 3, padding=1)
        self.act = torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


def model() -> torch.nn.Sequential:
    layers = [
        nn.Conv3d(1, 16, 3, padding=1),
        Block(),
        nn.MaxPool3d(2),
        nn.ConvTranspose3d(16, 8, 2, stride=2),
    ]
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(8, 2, 1))


def test_names_layers_in_order_and_what_stayed_with_torch() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    net = model()
    with torch.no_grad(), isa.limit("avx2"):
        report = explain(net, x)
        torch.testing.assert_close(report.result, net(x))
    assert [(row.layer, row.operator) for row in report.rows] == [
        ("0", "volnet.conv3d"),
        ("1.conv", "volnet.conv3d"),
        ("1.act", "aten.relu"),
        ("2", "volnet.max_pool3d"),
        ("3", "volnet.conv_transpose3d"),
        ("4", "aten.convolution"),
    ]
    first, second, relu, *_ = report.rows
    assert first.shapes == ((1, 1, 8, 8, 8), (16, 1, 3, 3, 3), (16,))
    assert second.kernels[0].startswith("conv3d_f32_wino")
    assert relu.kernels == ()
    assert relu.bytes == 2 * 16 * 8**3 * 4
    assert all(row.milliseconds > 0 and row.floor > 0 for row in report.rows)
    assert 0 < second.share == second.floor / second.milliseconds
    text = str(report)
    assert "1.conv" in text
    assert second.kernels[0] in text
    assert "convolutions left to torch: 1" in text


def test_work_is_what_torch_counts() -> None:
    """Forward and both gradients, by torch's own counter on torch's own operators."""
    x = torch.randn(2, 1, 8, 8, 8)
    ours = model()
    theirs = torch.nn.Sequential(
        torch.nn.Conv3d(1, 16, 3, padding=1),
        torch.nn.Conv3d(16, 16, 3, padding=1),
        torch.nn.MaxPool3d(2),
        torch.nn.ConvTranspose3d(16, 8, 2, stride=2),
        torch.nn.Conv3d(8, 2, 1),
    )

    def work(net: torch.nn.Module) -> float:
        def step() -> None:
            net(x).sum().backward()

        return sum(row.gflop for row in explain(step).rows) * 1e9

    with FlopCounterMode(display=False) as counter:
        theirs(x).sum().backward()
    assert work(theirs) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert work(ours) == pytest.approx(work(theirs), rel=1e-6)


def test_a_function_and_a_model_that_fails() -> None:
    report = explain(ops.conv3d, torch.ones(1, 1, 4, 4, 4), weight=torch.ones(1, 1, 3, 3, 3))
    assert [row.layer for row in report.rows] == [""]
    assert float(report.result[0, 0, 0, 0, 0]) == 27.0
    with pytest.raises(RuntimeError, match="channels"):
        explain(model(), torch.ones(1, 2, 8, 8, 8))
    assert explain(torch.nn.ReLU(), torch.ones(3)).rows[0].operator == "aten.relu"
