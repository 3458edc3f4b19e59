"""Losses that read the logits once, and once more for the gradient: functions, for any training loop.

All take float32, bfloat16 and float64 logits in either layout, compute in float32 at least, add up in an
order that does not depend on the number of threads, and return float32 (float64 for float64).
"""

from volnet.losses.cross_entropy import cross_entropy
from volnet.losses.dice import dice, dice_ce, tversky
from volnet.losses.focal import focal
from volnet.losses.mining import hard_negative, ohem
from volnet.losses.smooth_l1 import smooth_l1

__all__ = ["cross_entropy", "dice", "dice_ce", "focal", "hard_negative", "ohem", "smooth_l1", "tversky"]
