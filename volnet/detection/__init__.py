"""Boxes, anchors and what becomes of them: the parts of a detector that have no weights."""

from volnet.detection.anchors import anchor_boxes
from volnet.detection.coder import decode_boxes, encode_boxes
from volnet.detection.finding import Finding
from volnet.detection.matching import IGNORED, NEGATIVE, match_anchors
from volnet.detection.postprocess import select_boxes

__all__ = [
    "IGNORED",
    "NEGATIVE",
    "Finding",
    "anchor_boxes",
    "decode_boxes",
    "encode_boxes",
    "match_anchors",
    "select_boxes",
]
