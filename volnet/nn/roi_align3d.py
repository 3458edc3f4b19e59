"""Region averaging as a module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from volnet.ops.roi_align3d import roi_align3d

__all__ = ["RoIAlign3d"]


class RoIAlign3d(nn.Module):
    """:func:`volnet.ops.roi_align3d` with the constructor of ``torchvision.ops.RoIAlign``.

    >>> import torch
    >>> layer = RoIAlign3d(output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=True)
    >>> layer(torch.zeros(1, 8, 16, 16, 16), [torch.tensor([[4.0, 4, 4, 40, 48, 52]])]).shape
    torch.Size([1, 8, 7, 7, 7])
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """[N, C, D, H, W] and its boxes, [K, 7] or a list of [K_i, 6], to [K, C, *output_size]."""
        return roi_align3d(
            input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
