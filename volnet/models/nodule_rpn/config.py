"""The numbers that define a nodule_rpn; they travel in the header of its weights file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class NoduleRPNConfig:
    """Shape and input of the network.

    Attributes:
        spacing: mm per voxel of the input, (d, h, w).
        window: HU mapped to 0 and 1; values outside are clipped.
        channels: of the levels at 1/2, 1/4 and 1/8 of the input resolution.
        anchor_sizes: edge lengths of the anchors in voxels, which are millimetres at the default spacing.

    Example:
        >>> NoduleRPNConfig.from_json(NoduleRPNConfig().to_json()) == NoduleRPNConfig()
        True
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    window: tuple[float, float] = (-1000.0, 400.0)
    channels: tuple[int, int, int] = (32, 64, 128)
    anchor_sizes: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)

    def to_json(self) -> str:
        """The configuration as a JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NoduleRPNConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if the text is not such an object.
        """
        try:
            fields = json.loads(text)
            return cls(**{name: tuple(value) for name, value in fields.items()})
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not the configuration of a nodule_rpn: {text!r}") from error
