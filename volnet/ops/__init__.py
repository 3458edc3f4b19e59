"""Operators for volumes, with the arguments of :mod:`torch.nn.functional` where torch has them."""

from volnet.ops.avg_pool3d import avg_pool3d
from volnet.ops.conv3d import conv3d
from volnet.ops.max_pool3d import max_pool3d
from volnet.ops.sample_patches import sample_patches

__all__ = ["avg_pool3d", "conv3d", "max_pool3d", "sample_patches"]
