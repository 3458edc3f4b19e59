"""Planes that travel between ranks, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from volnet.ops._arguments import empty_volume, memory_format_of

__all__ = ["Group", "Traffic", "exchange", "gathered", "scale_gradient", "sum_gradient_too", "sum_over_ranks"]

Range = tuple[int, int]


@dataclass
class Traffic:
    """Bytes of planes that this rank has sent, since it was made."""

    forward: int = 0
    backward: int = 0


class Group:
    """The ranks that share a volume, in the order of their slabs."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.traffic = Traffic()

    def transfer(self, sent: dict[int, Tensor], received: dict[int, Tensor]) -> None:
        """Sends and receives contiguous tensors, by rank of the group."""
        work = [dist.irecv(x, group=self.group, group_src=peer) for peer, x in received.items()]
        work += [dist.isend(x, group=self.group, group_dst=peer) for peer, x in sent.items()]
        for one in work:
            if one is not None:
                one.wait()

    def __deepcopy__(self, memo: Any) -> Group:
        return self  # a process group cannot be copied

    def __reduce__(self) -> Any:
        raise TypeError("a spatially parallel network belongs to its processes: save its state_dict()")


def exchange(x: Tensor, owned: Sequence[Range], needed: Sequence[Range], group: Group) -> Tensor:
    """The planes ``needed[rank]`` of a volume of which every rank has the planes ``owned[rank]``.

    Args:
        x: [N, C, planes, H, W], the planes that this rank owns.
        owned: [lo, hi) of every rank, one after another along D.
        needed: [lo, hi) of every rank; they may overlap.

    Returns:
        [N, C, hi - lo, H, W] in the layout of ``x``. Gradients go back to the owners, who add them in the
        order of the ranks.
    """
    if list(owned) == list(needed):
        return x
    y: Tensor = _Exchange.apply(x, tuple(owned), tuple(needed), group)
    return y


def _common(a: Range, b: Range) -> Range | None:
    lo, hi = max(a[0], b[0]), min(a[1], b[1])
    return (lo, hi) if lo < hi else None


def _planes(x: Tensor, first: int, span: Range) -> Tensor:
    """[N, planes, H, W, C], whatever the layout, so that both sides agree."""
    return x.narrow(2, span[0] - first, span[1] - span[0]).permute(0, 2, 3, 4, 1)


def _move(
    x: Tensor, sources: Sequence[Range], targets: Sequence[Range], group: Group
) -> tuple[dict[int, tuple[Range, Tensor]], int]:
    """What every rank has of this rank's planes ``targets``, in the order of the ranks, when rank r has the
    planes ``sources[r]``; and the bytes sent."""
    me = group.rank
    first = sources[me][0]
    sent, received, spans = {}, {}, {}
    for peer in range(group.size):
        outgoing, incoming = _common(sources[me], targets[peer]), _common(sources[peer], targets[me])
        if incoming is not None:
            spans[peer] = incoming
        if peer == me:
            continue
        if outgoing is not None:
            sent[peer] = _planes(x, first, outgoing).contiguous()
        if incoming is not None:
            n, c, _, h, w = x.shape
            received[peer] = x.new_empty(n, incoming[1] - incoming[0], h, w, c)
    group.transfer(sent, received)
    pieces = {
        peer: (span, _planes(x, first, span) if peer == me else received[peer])
        for peer, span in spans.items()
    }
    return pieces, sum(piece.nbytes for piece in sent.values())


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, owned: tuple[Range, ...], needed: tuple[Range, ...], group: Group
    ) -> Tensor:
        ctx.owned, ctx.needed, ctx.group = owned, needed, group
        pieces, sent = _move(x, owned, needed, group)
        group.traffic.forward += sent
        return _assembled(x, needed[group.rank], pieces, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pieces, sent = _move(grad, ctx.needed, ctx.owned, ctx.group)
        ctx.group.traffic.backward += sent
        return _assembled(grad, ctx.owned[ctx.group.rank], pieces, True), None, None, None


def _assembled(like: Tensor, span: Range, pieces: dict[int, tuple[Range, Tensor]], add: bool) -> Tensor:
    """The planes of ``span``; those that come from several ranks are added."""
    n, c, _, h, w = like.shape
    y = empty_volume(like, [n, c, span[1] - span[0], h, w], memory_format_of(like))
    if add:
        y.zero_()
    for part, piece in pieces.values():
        target = _planes(y, span[0], part)
        if add:
            target.add_(piece)
        else:
            target.copy_(piece)
    return y


def gathered(x: Tensor, group: Group) -> Tensor:
    """[ranks, ...] of what every rank has, without a gradient."""
    parts = [torch.empty_like(x) for _ in range(group.size)]
    dist.all_gather(parts, x.contiguous(), group=group.group)
    return torch.stack(parts)


class _Sum(torch.autograd.Function):
    """Forward the sum over ranks, in their order; backward as ``all_of_gradient`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, all_of_gradient: bool) -> Tensor:
        ctx.group, ctx.all_of_gradient = group, all_of_gradient
        return gathered(x, group).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (gathered(grad, ctx.group).sum(0) if ctx.all_of_gradient else grad), None, None


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup | Group | None = None) -> Tensor:
    """The sum of ``x`` over the ranks that share a volume: what a loss is made of.

    Every rank computes the same loss from such sums and calls ``backward()`` on it. The gradient of each rank
    is then that of its own voxels; their sum over the ranks is the gradient of the loss.

    Args:
        x: any shape, the same on all ranks; sums of a slab's voxels.
        group: the ranks, all by default.

    Returns:
        Like ``x``, the same bits on all ranks.

    >>> from volnet.train.distributed import single_process
    >>> with single_process():
    ...     sum_over_ranks(torch.ones(2))
    tensor([1., 1.])
    """
    y: Tensor = _Sum.apply(x, group if isinstance(group, Group) else Group(group), False)
    return y


def sum_gradient_too(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks of what each goes on to use for its own slab: each has a part of the gradient."""
    y: Tensor = _Sum.apply(x, group, True)
    return y


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``, with its gradient scaled."""
    y: Tensor = _Scale.apply(x, factor)
    return y
