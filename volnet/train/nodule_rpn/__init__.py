"""Training of nodule_rpn.

`train` is the whole of it; `python -m volnet.train.nodule_rpn --help` is the same from a shell.
"""

from volnet.train.nodule_rpn.loop import train

__all__ = ["train"]
