"""Modules: drop-ins for :mod:`torch.nn`, with the same constructors and ``state_dict``."""

from volnet.nn.conv3d import Conv3d

__all__ = ["Conv3d"]
