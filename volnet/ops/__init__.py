"""Operators for volumes, with the arguments of :mod:`torch.nn.functional` where torch has them."""

from volnet.ops.conv3d import conv3d
from volnet.ops.sample_patches import sample_patches

__all__ = ["conv3d", "sample_patches"]
