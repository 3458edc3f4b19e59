"""Modules: drop-ins for :mod:`torch.nn`, with the same constructors and ``state_dict``."""

from volnet.nn.activate import ELU, GELU, LeakyReLU, PReLU, ReLU, Sigmoid, SiLU
from volnet.nn.adaptive_avg_pool3d import AdaptiveAvgPool3d
from volnet.nn.adaptive_max_pool3d import AdaptiveMaxPool3d
from volnet.nn.avg_pool3d import AvgPool3d
from volnet.nn.conv3d import Conv3d
from volnet.nn.conv_transpose3d import ConvTranspose3d
from volnet.nn.fractional_max_pool3d import FractionalMaxPool3d
from volnet.nn.lp_pool3d import LPPool3d
from volnet.nn.max_pool3d import MaxPool3d
from volnet.nn.max_unpool3d import MaxUnpool3d
from volnet.nn.norm import BatchNorm3d, GroupNorm, InstanceNorm3d, LayerNorm
from volnet.nn.pad import CircularPad3d, ConstantPad3d, ReflectionPad3d, ReplicationPad3d
from volnet.nn.roi_align3d import RoIAlign3d
from volnet.nn.roi_pool3d import RoIPool3d
from volnet.nn.softmax import Softmax
from volnet.nn.upsample import Upsample

__all__ = [
    "ELU",
    "GELU",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool3d",
    "AvgPool3d",
    "BatchNorm3d",
    "CircularPad3d",
    "ConstantPad3d",
    "Conv3d",
    "ConvTranspose3d",
    "FractionalMaxPool3d",
    "GroupNorm",
    "InstanceNorm3d",
    "LPPool3d",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool3d",
    "MaxUnpool3d",
    "PReLU",
    "ReLU",
    "ReflectionPad3d",
    "ReplicationPad3d",
    "RoIAlign3d",
    "RoIPool3d",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Upsample",
]
