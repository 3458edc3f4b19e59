"""From the phantom's anatomy to voxels: coverage of tubes, tissue by tissue, blur and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from volnet.data.phantom_anatomy import (
    Anatomy,
    Grid,
    Tubes,
    blur,
    bump,
    ellipse,
    ellipsoid,
    intersection,
    smoothstep,
)

AIR_HU = -1000.0
PADDING_HU = -1024
FAT_HU = -105.0
MUSCLE_HU = 55.0


def paint_tubes(grid: Grid, tubes: Tubes) -> np.ndarray:
    """Share of each voxel that the tubes cover, float32 ``[D, H, W]``."""
    result = np.zeros(grid.shape, np.float32)
    flat = result.reshape(-1)
    ends = np.stack([tubes.start[:, ::-1], tubes.stop[:, ::-1]])
    radius = np.maximum(tubes.start_radius, tubes.stop_radius)[:, None]
    # A tube thinner than a voxel is drawn one voxel wide, its share lowered to keep the cross-section.
    reach = np.maximum(radius, grid.edge / 2) + grid.edge / 2
    start = np.floor((ends.min(0) - reach - grid.low) / grid.spacing).astype(int)
    stop = np.ceil((ends.max(0) + reach - grid.low) / grid.spacing).astype(int) + 1
    start, stop = np.maximum(start, 0), np.minimum(stop, grid.shape)
    visible = np.flatnonzero(np.all(stop > start, axis=1))
    size = stop - start
    order = visible[np.argsort(size[visible].prod(1), kind="stable")]
    # Tubes with boxes of like size go together: one array operation instead of thousands.
    while len(order):
        box = size[order[: min(len(order), 512)]].max(0)
        batch = order[: max(1, min(512, 4_000_000 // int(box.prod())))]
        order = order[len(batch) :]
        box = size[batch].max(0)
        first = np.minimum(start[batch], np.array(grid.shape) - box)
        first = np.maximum(first, 0)
        box = np.minimum(box, grid.shape)
        p, q = ends[0, batch].astype(np.float32), ends[1, batch].astype(np.float32)
        e = q - p
        offset = [
            (
                grid.low[i] + grid.spacing[i] * (first[:, i : i + 1] + np.arange(box[i])) - p[:, i : i + 1]
            ).astype(np.float32)
            for i in range(3)
        ]
        dz, dy, dx = offset[0][:, :, None, None], offset[1][:, None, :, None], offset[2][:, None, None, :]
        ez, ey, ex = (e[:, i, None, None, None] for i in range(3))
        t = np.clip((dz * ez + dy * ey + dx * ex) / np.maximum(ez * ez + ey * ey + ex * ex, 1e-9), 0.0, 1.0)
        distance = np.sqrt((dz - t * ez) ** 2 + (dy - t * ey) ** 2 + (dx - t * ex) ** 2)
        r0 = tubes.start_radius[batch].astype(np.float32)[:, None, None, None]
        r1 = tubes.stop_radius[batch].astype(np.float32)[:, None, None, None]
        r = r0 + t * (r1 - r0)
        wide = np.maximum(r, np.float32(grid.edge / 2))
        share = np.clip(0.5 + (wide - distance) / np.float32(grid.edge), 0.0, 1.0) * (r / wide) ** 2
        z, y, x = (first[:, i : i + 1] + np.arange(box[i]) for i in range(3))
        at = (z[:, :, None, None] * grid.shape[1] + y[:, None, :, None]) * grid.shape[2] + x[:, None, None, :]
        hit = share > 0
        np.maximum.at(flat, at[hit], share[hit])
    return result


def _blur_slice(values: np.ndarray, grid: Grid, mm: float) -> np.ndarray:
    """In-plane Gaussian blur of one slice ``[H, W]``."""
    return blur(blur(values, 0, mm / grid.spacing_mm[1]), 1, mm / grid.spacing_mm[2])


def _noise(rng: np.random.Generator, grid: Grid, mm: float) -> np.ndarray:
    """Noise of one slice, variance 1, correlated over ``mm``: float32 ``[H, W]``."""
    values = _blur_slice(rng.standard_normal(grid.shape[1:], dtype=np.float32), grid, mm)
    return values / max(float(values.std()), 1e-6)


def _cubic_taps(at: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which four samples at ``axis`` make the value at each of ``at``, and their weights: both ``[4, N]``."""
    position = np.clip((at - axis[0]) / (axis[1] - axis[0]), 0.0, len(axis) - 1.0)
    k = np.minimum(position.astype(int), len(axis) - 2)
    t = position - k
    weights = np.stack(
        [
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ]
    )
    return np.clip(k + np.arange(-1, 3)[:, None], 0, len(axis) - 1), weights.astype(np.float32)


def _refine(field: np.ndarray, taps: Sequence[tuple[np.ndarray, np.ndarray]], d: int) -> np.ndarray:
    """Slice ``d`` of a coarse field on the fine grid, float32 ``[H, W]``. Plain sums: no BLAS threads."""
    (z, z_weight), (y, y_weight), (x, x_weight) = taps
    plane = sum(w * field[k] for k, w in zip(z[:, d], z_weight[:, d], strict=True))
    plane = sum(w[:, None] * plane[k] for k, w in zip(y, y_weight, strict=True))
    return sum(w * np.take(plane, k, axis=1) for k, w in zip(x, x_weight, strict=True))


def render(
    rng: np.random.Generator,
    anatomy: Anatomy,
    grid: Grid,
    coverage: dict[str, np.ndarray],
    nodules: list[tuple[tuple[slice, slice, slice], np.ndarray, float]],
) -> np.ndarray:
    """The scan, int16 HU ``[D, H, W]``, slice by slice."""
    taps = [_cubic_taps(at, axis) for at, axis in zip((grid.z, grid.y, grid.x), anatomy.axes, strict=True)]
    along = float(np.exp(-grid.spacing_mm[0] / 1.8))
    y, x = grid.y[:, None], grid.x[None, :]
    outside = np.hypot(y, x) > grid.field_of_view
    voxels = np.empty(grid.shape, np.int16)
    texture = _noise(rng, grid, 1.3)
    for d in range(grid.shape[0]):
        fields = {name: _refine(field, taps, d) for name, field in anatomy.fields.items()}
        texture = along * texture + np.float32(np.sqrt(1 - along**2)) * _noise(rng, grid, 1.3)
        lung = np.clip(0.5 - fields["lung"] / grid.edge, 0.0, 1.0)
        hu = _tissue(anatomy, grid, float(grid.z[d]), x, y, fields, texture)
        parenchyma = anatomy.parenchyma_hu + 0.28 * y + 20.0 * texture + 9.0 * fields["fine"]
        parenchyma += _fissures(x, y, float(grid.z[d]), fields["broad"])
        _blend(hu, parenchyma, lung)
        inside = fields["body"] < -4.0
        _blend(hu, anatomy.blood_hu, coverage["vessels"][d] * inside)
        _blend(hu, 20.0, coverage["walls"][d] * inside)
        _blend(hu, AIR_HU, coverage["lumens"][d] * inside)
        for (zs, ys, xs), covered, density in nodules:
            if zs.start <= d < zs.stop:
                values = density + 8.0 * texture[ys, xs]
                box = hu[ys, xs]
                _blend(box, values, covered[d - zs.start] * lung[ys, xs])
        hu = _blur_slice(hu, grid, 0.55)
        level = 14.0 + 6.0 * (fields["body"] < 0) + 6.0 * smoothstep(grid.z[d], 90.0, 130.0)
        hu += level * _noise(rng, grid, 0.75)
        hu[outside] = PADDING_HU
        voxels[d] = np.clip(np.rint(hu), PADDING_HU, 3071)
    return voxels


def _blend(hu: np.ndarray, value: Any, share: np.ndarray) -> None:
    hu += (value - hu) * share


def _fissures(x: np.ndarray, y: np.ndarray, z: float, wobble: np.ndarray) -> np.ndarray:
    """HU that the lobes' boundaries add to the parenchyma."""
    oblique = 0.62 * (y - 4.0 + 0.05 * np.abs(x)) + 0.78 * (z + 12.0) + 2.0 * wobble
    result = 85.0 * np.exp(-((oblique / 0.9) ** 2))
    horizontal = (z - 2.0) + 0.1 * y + 3.0 * wobble
    result += np.where((x < 0) & (oblique < 0), 60.0 * np.exp(-((horizontal / 1.0) ** 2)), 0.0)
    return result


def _tissue(
    anatomy: Anatomy,
    grid: Grid,
    z: float,
    x: np.ndarray,
    y: np.ndarray,
    fields: dict[str, np.ndarray],
    texture: np.ndarray,
) -> np.ndarray:
    """Everything of one slice but lungs, vessels and airways, float32 HU ``[H, W]``."""
    edge = grid.edge
    body, cavity, fine, broad = fields["body"], fields["cavity"], fields["fine"], fields["broad"]

    def paint(value: Any, distance: Any) -> None:
        _blend(hu, value, np.clip(0.5 - distance / edge, 0.0, 1.0))

    def paint_bone(
        distance: np.ndarray, where: tuple[slice, slice] | np.ndarray, shell: float, marrow: float
    ) -> None:
        cortex, inner = np.clip(0.5 - distance / edge, 0, 1), np.clip(0.5 - (distance + shell) / edge, 0, 1)
        part = hu[where]
        _blend(part, 560.0, cortex)
        _blend(part, marrow + 35.0 * texture[where], inner)
        hu[where] = part

    hu = np.full(body.shape, AIR_HU, np.float32)
    # The table, an arc below the back.
    table = np.abs(y - 122.0 + 0.0011 * x**2) - 1.8
    paint(60.0, np.maximum(table, np.abs(x) - 150.0))
    paint(20.0, body)
    paint(FAT_HU + 8.0 * fine, body + 2.0)

    # Chest wall: muscle around the ribs, thick over the back and shoulders.
    a, b, middle = anatomy.cavity_axes(z)
    around = np.arctan2(np.abs(x) / a, (y - middle) / b) / np.pi  # 0 at the back, 1 in front
    high = float(smoothstep(z, -30.0, 40.0))
    thickness = (
        13.0
        + 22.0 * high * bump(around, 0.34, 0.17)
        + 13.0 * high * bump(around, 0.72, 0.12)
        + 22.0 * bump(around, 0.05, 0.12)
        + 2.0 * broad
    )
    if z > 60.0:
        thickness = thickness + 25.0 * float(smoothstep(z, 60.0, 130.0))
    muscle = intersection(cavity - thickness, body + 0.55 * anatomy.fat_mm + 2.0, rounding=6.0)
    paint(MUSCLE_HU + 7.0 * fine, muscle)
    planes = np.minimum(np.abs(cavity - 14.5 + broad), np.abs(cavity - 25.0 - 2.0 * broad)) - 0.7
    paint(-80.0, np.maximum(planes, muscle + 2.0))

    # Inside the ribs: fat of the mediastinum, organs below the diaphragm.
    paint(FAT_HU + 15.0 + 14.0 * fine, cavity)
    paint(MUSCLE_HU, np.maximum(cavity, -1.6 - cavity))
    if fields["abdomen"].min() < 2.0:
        _paint_abdomen(anatomy, paint, x, y, z, fields)
    if -110.0 < z < 40.0:
        rows, columns = (
            slice(*np.searchsorted(axis, ends)) for axis, ends in ((grid.y, (-90, 60)), (grid.x, (-70, 95)))
        )
        box = (rows, columns)
        heart = anatomy.heart(x[:, columns], y[rows], z)
        blood = np.maximum(anatomy.chambers(x[:, columns], y[rows], z), heart + 4.0)
        _blend(hu[box], 100.0 + 4.0 * fine[box], np.clip(0.5 - heart / edge, 0.0, 1.0))
        _blend(hu[box], anatomy.blood_hu + 3.0 * fine[box], np.clip(0.5 - blood / edge, 0.0, 1.0))
    paint(42.0, ellipse(x - 5.0, y - anatomy.spine_y(z) + 24.0, 8.0, 5.5))

    _paint_ribs(anatomy, paint_bone, z, cavity, around, muscle)
    _paint_spine(anatomy, paint, paint_bone, grid, z)
    _paint_sternum_and_scapulae(anatomy, paint_bone, grid, z, cavity, around, body)
    return hu


def _paint_abdomen(
    anatomy: Anatomy,
    paint: Callable[[Any, Any], None],
    x: np.ndarray,
    y: np.ndarray,
    z: float,
    fields: dict[str, np.ndarray],
) -> None:
    inside, fine = fields["abdomen"], fields["fine"]
    paint(MUSCLE_HU, inside)
    paint(FAT_HU, inside + 2.5)
    liver = intersection(
        inside + 1.0, x - 18.0 + 0.35 * y + 0.25 * (z + 80.0) + 3.0 * fields["broad"], rounding=12.0
    )
    paint(95.0 + 3.0 * fine, liver)
    spleen = np.maximum(ellipsoid(x, y, z, (74, 48, -118), (34, 30, 44)), inside + 3.0)
    paint(112.0 + 3.0 * fine, spleen)
    stomach = np.maximum(ellipsoid(x, y, z, (52, -18, -112), (40, 38, 34)), inside + 3.0)
    paint(50.0, stomach)
    paint(25.0 + 8.0 * fine, stomach + 4.0)
    paint(-970.0, np.maximum(stomach + 4.0, y + 30.0))


def _paint_ribs(
    anatomy: Anatomy,
    paint_bone: Callable[..., None],
    z: float,
    cavity: np.ndarray,
    around: np.ndarray,
    muscle: np.ndarray,
) -> None:
    """Ribs slant: each falls from the spine to the side and its cartilage rises to the sternum."""
    where = np.nonzero((cavity > -2.0) & (cavity < 14.0) & (around > 0.07))
    if not len(where[0]) or z > 128.0:
        return
    s = around[where]
    height = z + 66.0 * smoothstep(s, 0.02, 0.78) - 34.0 * smoothstep(s, 0.78, 1.0) + anatomy.rib_phase
    from_rib = (height + 12.5) % 25.0 - 12.5
    radial = cavity[where] - 5.6
    distance = 3.3 * (np.sqrt((from_rib / 6.2) ** 2 + (radial / 3.3) ** 2) - 1.0)
    # In front ribs go over into cartilage, which has no cortex.
    bone = s < 0.8
    for part, shell, marrow in ((bone, 1.3, 190.0), (~bone, 0.0, 105.0)):
        index = (where[0][part], where[1][part])
        paint_bone(distance[part] + 0.02, index, shell, marrow)


def _paint_spine(
    anatomy: Anatomy, paint: Callable[[Any, Any], None], paint_bone: Callable[..., None], grid: Grid, z: float
) -> None:
    middle = anatomy.spine_y(z)
    rows = slice(*np.searchsorted(grid.y, (middle - 25.0, middle + 75.0)))
    columns = slice(*np.searchsorted(grid.x, (-50.0, 50.0)))
    box = (rows, columns)
    x, y = grid.x[None, columns], grid.y[rows, None] - middle
    if not x.size or not y.size:
        return
    period = 24.0
    up = (z + 6.0) % period - period / 2  # from the middle of the vertebra
    waist = 1.0 - 0.13 * (1.0 - min(1.0, (up / 9.5) ** 2))
    outline = ellipse(x, y, 17.5 * waist, 14.0 * waist, 2.4)
    end_plate = abs(up) - 9.8
    full = np.full(grid.shape[1:], 1e3, np.float32)
    full[box] = outline
    paint(85.0, full)
    paint_bone(np.maximum(outline, end_plate), box, 1.3, 170.0)
    canal = np.hypot(x, y - 22.0)
    arch = np.abs(canal - 11.0) - 2.4
    if up < -4.0:  # the foramina, where the nerves leave, are below the pedicles
        arch = np.maximum(arch, 18.0 - y + 4.0)
    paint_bone(arch, box, 1.0, 260.0)
    lift = up + 0.7 * (y - 30.0)
    spinous = np.maximum(
        np.abs(x) - 2.6, np.maximum(np.abs(y - 44.0) - 13.0, np.abs((lift + 12) % period - 12) - 8.0)
    )
    paint_bone(spinous, box, 1.2, 200.0)
    transverse = np.maximum(
        ellipse(np.abs(x) - 24.0, y - 25.0 - 0.25 * np.abs(x) + 6.0, 14.0, 5.0), abs(up - 3.0) - 6.0
    )
    paint_bone(transverse, box, 1.2, 220.0)
    full[box] = canal - 8.0
    paint(28.0, full)


def _paint_sternum_and_scapulae(
    anatomy: Anatomy,
    paint_bone: Callable[..., None],
    grid: Grid,
    z: float,
    cavity: np.ndarray,
    around: np.ndarray,
    body: np.ndarray,
) -> None:
    everywhere = (slice(None), slice(None))
    x = grid.x[None, :]
    if -50.0 < z < 108.0:
        half_width = 14.0 + 12.0 * float(smoothstep(z, 62.0, 90.0))
        joint = abs(z - 66.0) < 2.0
        plate = np.maximum(np.abs(cavity - 7.5) - 5.2, np.abs(x) - half_width)
        plate = np.where(around > 0.5, plate, 1e3)
        if not joint:
            paint_bone(np.maximum(plate, max(-50.0 - z, z - 108.0)), everywhere, 1.4, 120.0)
    if -15.0 < z < 114.0:
        # Blade: a thin shell over the back of the ribs, its lower corner narrow.
        reach = 0.11 * float(smoothstep(z, -20.0, 60.0))
        sideways = np.maximum(0.31 - reach - around, around - 0.36 - 1.1 * reach) * 170.0
        thick = 1.8 + 3.0 * smoothstep(around, 0.36, 0.46) * float(smoothstep(z, 50.0, 110.0))
        blade = np.maximum(
            np.maximum(np.abs(cavity - 21.0) - thick, sideways), np.maximum(body + 8.0, z - 112.0)
        )
        paint_bone(blade, everywhere, 1.2, 180.0)
    if 92.0 < z < 126.0:
        along = np.abs(x) - 24.0
        bow = 7.0 * np.sin(along / 17.0)
        clavicle = np.hypot(z - 104.0 - 0.12 * along, grid.y[:, None] + 48.0 - 0.22 * along + bow) - 5.0
        clavicle = np.maximum(clavicle, np.abs(along - 50.0) - 50.0)
        paint_bone(np.maximum(clavicle, body + 6.0), everywhere, 1.6, 160.0)
