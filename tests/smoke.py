"""Does an installed volnet work? Run with nothing but the wheel and its dependencies."""

import torch

import volnet

x = torch.randn(1, 4, 6, 7, 8)
w = torch.randn(5, 4, 3, 3, 3)
difference = (volnet.ops.conv3d(x, w, padding=1) - torch.nn.functional.conv3d(x, w, padding=1)).abs().max()
assert difference < 1e-4, difference
assert volnet.nn.MaxPool3d(2)(x).shape == (1, 4, 3, 3, 4)
print(f"volnet {volnet.__version__} with torch {torch.__version__} at {volnet.isa.active()}: works")
