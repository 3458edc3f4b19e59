"""Operators for volumes, with the arguments of :mod:`torch.nn.functional` where torch has them."""

from volnet.ops.activate import elu, gelu, leaky_relu, prelu, relu, sigmoid, silu
from volnet.ops.adaptive_avg_pool3d import adaptive_avg_pool3d
from volnet.ops.adaptive_max_pool3d import adaptive_max_pool3d
from volnet.ops.argmax import argmax
from volnet.ops.avg_pool3d import avg_pool3d
from volnet.ops.box_iou3d import box_iou3d
from volnet.ops.cat import cat
from volnet.ops.conv3d import conv3d, conv3d_with_statistics
from volnet.ops.conv_transpose3d import conv_transpose3d
from volnet.ops.fractional_max_pool3d import fractional_max_pool3d
from volnet.ops.gaussian_filter3d import gaussian_filter3d
from volnet.ops.grid_sample import affine_grid, grid_sample
from volnet.ops.interpolate import interpolate
from volnet.ops.layer_norm import layer_norm
from volnet.ops.lp_pool3d import lp_pool3d
from volnet.ops.max_pool3d import max_pool3d
from volnet.ops.max_unpool3d import max_unpool3d
from volnet.ops.nms3d import batched_nms3d, nms3d
from volnet.ops.norm import batch_norm, group_norm, instance_norm
from volnet.ops.pad import crop3d, pad
from volnet.ops.resample import resample
from volnet.ops.roi_align3d import roi_align3d
from volnet.ops.roi_crop3d import roi_crop3d
from volnet.ops.roi_pool3d import roi_pool3d
from volnet.ops.sample_patches import sample_patches
from volnet.ops.softmax import softmax

__all__ = [
    "adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "affine_grid",
    "argmax",
    "avg_pool3d",
    "batch_norm",
    "batched_nms3d",
    "box_iou3d",
    "cat",
    "conv3d",
    "conv3d_with_statistics",
    "conv_transpose3d",
    "crop3d",
    "elu",
    "fractional_max_pool3d",
    "gaussian_filter3d",
    "gelu",
    "grid_sample",
    "group_norm",
    "instance_norm",
    "interpolate",
    "layer_norm",
    "leaky_relu",
    "lp_pool3d",
    "max_pool3d",
    "max_unpool3d",
    "nms3d",
    "pad",
    "prelu",
    "relu",
    "resample",
    "roi_align3d",
    "roi_crop3d",
    "roi_pool3d",
    "sample_patches",
    "sigmoid",
    "silu",
    "softmax",
]
