"""What is done to a captured graph, in this order. A rule is a function that changes the graph and says how
often it did."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Graph

from volnet.optimize.rules.activation import fuse_activation
from volnet.optimize.rules.batch_norm import fold_batch_norm
from volnet.optimize.rules.concatenation import read_both_parts
from volnet.optimize.rules.dropout import drop_dropout
from volnet.optimize.rules.functional import changes_in_place, make_functional
from volnet.optimize.rules.layout import reshape_views, use_channels_last
from volnet.optimize.rules.norm_in_training import keep_statistics
from volnet.optimize.rules.norm_of_convolution import normalize_on_load, use_statistics
from volnet.optimize.rules.operators import use_operators
from volnet.optimize.rules.padding import drop_padding
from volnet.optimize.rules.residual import fuse_residual

__all__ = ["left_to_torch", "rewrite"]

_LEFT = "left to torch: changes in place"

# Of a graph whose operators are still torch's.
FIRST: tuple[Callable[[Graph], int], ...] = (drop_dropout, drop_padding, make_functional)
RULES: tuple[Callable[[Graph], int], ...] = (
    use_operators,
    fold_batch_norm,
    fuse_residual,
    fuse_activation,
    keep_statistics,
    use_statistics,
    normalize_on_load,
    read_both_parts,
    reshape_views,
    use_channels_last,
)


def rewrite(graph: Graph) -> dict[str, int]:
    """How often each rule changed the graph. One that changes volumes in place, where somebody could tell, is
    left to torch."""
    changes = {rule.__name__: rule(graph) for rule in FIRST}
    if changes_in_place(graph):
        return {**changes, _LEFT: 1}
    return changes | {rule.__name__: rule(graph) for rule in RULES}


def left_to_torch(changes: dict[str, int]) -> bool:
    """Whether :func:`rewrite` left the graph as it was."""
    return _LEFT in changes
