"""Changes in place that concern no volume do not keep volnet from the rest of a network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import volnet

pytestmark = pytest.mark.filterwarnings("ignore")  # Dynamo's own


class Filled(nn.Module):
    """Its mask is complete before it is read, as SwinUNETR's; or is read before, as it is then."""

    def __init__(self, read_before: str) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.read_before = read_before

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(1, 1, 6, 7, 8)
        mask[:, :, :3] = 1
        before = x
        if self.read_before == "result":
            before = F.relu(self.conv(mask))
        elif self.read_before == "view":
            before = mask.transpose(2, 3).transpose(2, 3)
        elif self.read_before == "itself":
            mask[:, :, 3:5] = mask[:, :, :2] + 1
        mask[:, :, 2:4] = 2
        mask[..., 1:] = x[..., 1:]
        return F.relu(self.conv(mask * x)) + before


class Squeezed(nn.Module):
    """With an activation in place on what is no volume, as squeeze-and-excitation has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * F.relu(self.linear(y.mean((2, 3, 4))), inplace=True)[:, :, None, None, None]


def test_an_activation_in_place_on_a_matrix() -> None:
    torch.manual_seed(0)
    model, x = Squeezed().eval(), torch.randn(1, 1, 6, 7, 8)
    optimized = volnet.optimize(model)
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-4)
        ran = [row.operator for row in volnet.explain(optimized, x).rows]
    assert any(name.startswith("volnet.conv3d") for name in ran)
    torch._dynamo.reset()


@pytest.mark.parametrize("read_before", ["", "result", "view", "itself"])
def test_a_tensor_that_is_filled_keeps_its_values(read_before: str) -> None:
    torch.manual_seed(0)
    model, x = Filled(read_before).eval(), torch.randn(1, 1, 6, 7, 8)
    optimized = volnet.optimize(model)
    with torch.no_grad():
        torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-4)
        ran = [row.operator for row in volnet.explain(optimized, x).rows]
    assert any(name.startswith("volnet.conv3d") for name in ran) == (read_before == "")
    torch._dynamo.reset()
