"""nodule_rpn: a 3-D region proposal network for lung nodules. Its model card is README.md in this folder."""

from volnet.models.nodule_rpn.config import NoduleRPNConfig
from volnet.models.nodule_rpn.detect import (
    InvalidWeightsError,
    detect_nodules,
    load_nodule_rpn,
    save_nodule_rpn,
)
from volnet.models.nodule_rpn.model import NoduleRPN, fold_batch_norm

__all__ = [
    "InvalidWeightsError",
    "NoduleRPN",
    "NoduleRPNConfig",
    "detect_nodules",
    "fold_batch_norm",
    "load_nodule_rpn",
    "save_nodule_rpn",
]
