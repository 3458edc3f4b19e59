"""The phantom's chest: organs as signed distances, vessels and airways as tubes.

Lengths are mm in patient axes (x left, y back, z head) about the middle of the chest. Signed distances are
negative inside, and close to mm near the surface, which is all that antialiasing needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volnet.data.geometry import Geometry

# Where the middle of the chest lies in the scanner; off zero, so that a confusion of voxels and mm shows.
TABLE_POSITION = (4.0, -152.0, -196.0)
_COARSE = 4.0  # mm, grid on which the smooth organs are evaluated
_COARSE_LOW = (-192.0, -152.0, -180.0)  # z, y, x
_COARSE_HIGH = (192.0, 152.0, 180.0)
HILA = {-1: (-36.0, 10.0, 4.0), 1: (36.0, 14.0, 10.0)}  # side (-1 right, 1 left): x, y, z
_CARINA = (1.0, 17.0, 26.0)


def as_triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


class Grid:
    """Voxel centres in anatomical mm, which are patient mm over the patient's scale."""

    def __init__(self, shape: Sequence[int], spacing: Sequence[float], scale: float) -> None:
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.scale = scale
        self.spacing_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        self.spacing = np.array(self.spacing_mm) / scale
        self.low = -(np.array(self.shape) - 1) / 2 * self.spacing
        z, y, x = (self.low[i] + self.spacing[i] * np.arange(self.shape[i]) for i in range(3))
        self.z, self.y, self.x = z.astype(np.float32), y.astype(np.float32), x.astype(np.float32)
        # Width over which a surface goes from covered to not, for slices thicker than pixels as well.
        self.edge = float(np.prod(self.spacing) ** (1 / 3))
        self.field_of_view = float(min(self.shape[1] * self.spacing[1], self.shape[2] * self.spacing[2]) / 2)

    def geometry(self) -> Geometry:
        corner = self.low[::-1] * self.scale + TABLE_POSITION
        return Geometry(self.shape, self.spacing_mm, as_triple(corner), (1, 0, 0, 0, 1, 0, 0, 0, 1))

    def covers(self, points: np.ndarray, margin: float) -> np.ndarray:
        """``[P]`` bool: which of the points ``[P, 3]`` (z, y, x) lie at least ``margin`` inside the image."""
        inside = np.all(np.abs(points) <= -self.low - margin, axis=1)
        return inside & (np.hypot(points[:, 1], points[:, 2]) <= self.field_of_view - margin)


def ellipse(x: np.ndarray, y: np.ndarray, a: Any, b: Any, power: float = 2.0) -> np.ndarray:
    """Distance, along the ray from its centre, to a superellipse with half axes a and b."""
    q = ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / np.maximum(q, 1e-3))


def ellipsoid(
    x: np.ndarray, y: np.ndarray, z: Any, center: Sequence[float], axes: Sequence[float]
) -> np.ndarray:
    dx, dy, dz = (x - center[0]), (y - center[1]), (z - center[2])
    q = np.sqrt((dx / axes[0]) ** 2 + (dy / axes[1]) ** 2 + (dz / axes[2]) ** 2)
    gradient = np.sqrt((dx / axes[0] ** 2) ** 2 + (dy / axes[1] ** 2) ** 2 + (dz / axes[2] ** 2) ** 2)
    return q * (q - 1) / np.maximum(gradient, 1e-4)


def _union(*distances: np.ndarray, rounding: float = 8.0) -> np.ndarray:
    """Smooth minimum: corners between the shapes are filled over ``rounding`` mm."""
    result = distances[0]
    for other in distances[1:]:
        h = np.clip(0.5 + 0.5 * (other - result) / rounding, 0.0, 1.0)
        result = other + (result - other) * h - rounding * h * (1 - h)
    return result


def intersection(*distances: np.ndarray, rounding: float) -> np.ndarray:
    return -_union(*(-d for d in distances), rounding=rounding)


def smoothstep(value: Any, low: float, high: float) -> Any:
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def bump(value: np.ndarray, center: float, width: float) -> np.ndarray:
    return np.exp(-(((value - center) / width) ** 2))


@dataclass(frozen=True)
class Tubes:
    """Straight tapering tubes: ends ``[K, 3]`` (x, y, z), radii ``[K]``, mm."""

    start: np.ndarray
    stop: np.ndarray
    start_radius: np.ndarray
    stop_radius: np.ndarray

    @staticmethod
    def join(parts: Sequence[Tubes]) -> Tubes:
        names = ("start", "stop", "start_radius", "stop_radius")
        return Tubes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @staticmethod
    def along(points: np.ndarray, radii: np.ndarray) -> Tubes:
        return Tubes(points[:-1], points[1:], radii[:-1], radii[1:])

    def widened(self, by: float) -> Tubes:
        return Tubes(self.start, self.stop, self.start_radius + by, self.stop_radius + by)

    def distance(self, axes: Sequence[np.ndarray], reach: float = 24.0) -> np.ndarray:
        """Signed distance on the grid of ``axes`` (z, y, x), capped at ``reach`` mm."""
        result = np.full([len(axis) for axis in axes], reach)
        for p, q, r0, r1 in zip(self.start, self.stop, self.start_radius, self.stop_radius, strict=True):
            far = reach + max(r0, r1)
            low, high = np.minimum(p, q)[::-1] - far, np.maximum(p, q)[::-1] + far
            box = tuple(
                slice(*np.searchsorted(axis, ends)) for axis, *ends in zip(axes, low, high, strict=True)
            )
            dz, dy, dx = np.meshgrid(
                *(axis[part] - at for axis, part, at in zip(axes, box, p[::-1], strict=True)),
                indexing="ij", sparse=True,
            )  # fmt: skip
            e = q - p
            t = np.clip((dx * e[0] + dy * e[1] + dz * e[2]) / max(float(e @ e), 1e-9), 0.0, 1.0)
            d = np.sqrt((dx - t * e[0]) ** 2 + (dy - t * e[1]) ** 2 + (dz - t * e[2]) ** 2)
            result[box] = np.minimum(result[box], d - (r0 + t * (r1 - r0)))
        return result


def _curve(points: Sequence[Sequence[float]], radii: Sequence[float], step: float = 4.0) -> Tubes:
    """A tube of about ``step`` mm pieces along a Catmull-Rom curve through ``points`` (x, y, z)."""
    p = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    out, sizes = [p[:1]], [np.array([radii[0]])]
    for i in range(len(p) - 1):
        a, b, c, d = padded[i : i + 4]
        count = max(1, round(float(np.linalg.norm(c - b)) / step))
        t = (np.arange(1, count + 1) / count)[:, None]
        out.append(
            0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        )
        sizes.append(radii[i] + t[:, 0] * (radii[i + 1] - radii[i]))
    return Tubes.along(np.concatenate(out), np.concatenate(sizes))


def blur(values: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    """Gaussian blur along one axis, edge values repeated; ``sigma`` in samples."""
    reach = max(1, int(np.ceil(2.7 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2).astype(np.float32)
    taps /= taps.sum()
    size = values.shape[axis]
    widths = [(0, 0)] * values.ndim
    widths[axis] = (reach, reach)
    padded = np.moveaxis(np.pad(values, widths, mode="edge"), axis, 0)
    result = taps[reach] * padded[reach : reach + size]
    for i in range(reach):
        result += taps[i] * (padded[i : i + size] + padded[2 * reach - i : 2 * reach - i + size])
    return np.moveaxis(result, 0, axis)


class Anatomy:
    """One made-up patient: organs as signed distances, vessels and airways as tubes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.scale = float(rng.uniform(0.95, 1.04))
        self.blood_hu = float(rng.uniform(130.0, 210.0))
        self.parenchyma_hu = float(rng.uniform(-878.0, -858.0))
        self.fat_mm = float(rng.uniform(9.0, 15.0))
        self.heart_shift = float(rng.uniform(-4.0, 4.0))
        self.dome = {-1: float(rng.uniform(-72.0, -60.0)), 1: float(rng.uniform(-86.0, -74.0))}
        self.rib_phase = float(rng.uniform(0.0, 25.0))
        self.great_vessels = self._great_vessels()
        self.axes = [
            np.arange(low, high + 1, _COARSE) for low, high in zip(_COARSE_LOW, _COARSE_HIGH, strict=True)
        ]
        z, y, x = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        self.fields = self._fields(x, y, z)

    def _great_vessels(self) -> Tubes:
        h = self.heart_shift
        return Tubes.join(
            [
                # Aorta: root, arch, descending.
                _curve(
                    [(4 + h, -12, -18), (-6, -22, 15), (-4, -18, 45), (8, 2, 60), (20, 26, 52), (24, 40, 30),
                     (23, 42, -20), (18, 42, -80), (10, 40, -130), (4, 36, -200)],
                    [15, 14.5, 14, 13.5, 12.5, 12, 11.5, 11, 11, 10.5],
                ),
                # Arteries of the head and arms.
                _curve([(-2, -8, 60), (-10, -6, 85), (-24, -2, 120), (-26, 0, 190)], [6, 5.5, 4.5, 4]),
                _curve([(9, 2, 64), (11, 2, 95), (18, 2, 130), (20, 2, 190)], [4, 3.5, 3.5, 3.5]),
                _curve([(17, 16, 62), (22, 16, 90), (36, 8, 122), (80, 0, 134)], [5, 5, 5, 4.5]),
                # Superior vena cava and the veins into it, pulmonary trunk and its two branches.
                _curve([(-24, -12, -25), (-24, -14, 30), (-22, -18, 70), (-34, -22, 112), (-70, -20, 130)],
                       [10, 9, 8, 7, 6]),
                _curve([(-22, -20, 70), (6, -28, 84), (30, -24, 108), (60, -20, 130)], [6, 6, 6, 6]),
                _curve([(14 + h, -38, -14), (17, -32, 8), (17, -8, 22), (26, 10, 22), HILA[1]],
                       [14, 13, 12.5, 9.5, 7]),
                _curve([(15, -12, 20), (-6, 2, 14), (-22, 7, 9), HILA[-1]], [11, 10, 9, 6.5]),
                # Pulmonary veins into the left atrium, inferior vena cava.
                _curve([(10, 18, -16), (-18, 14, -18), (-34, 8, -18)], [7, 6.5, 5]),
                _curve([(10, 18, -16), (30, 18, -16), (38, 12, -14)], [7, 6.5, 5]),
                _curve([(-22, -5, -55), (-24, 0, -90), (-20, 15, -200)], [11, 11, 11]),
            ]
        )  # fmt: skip

    def spine_y(self, z: Any) -> Any:
        """Middle of the vertebral bodies: the thoracic spine is bent, furthest back at mid chest."""
        return 57.0 - 18.0 * ((z + 5.0) / 150.0) ** 2

    def cavity_axes(self, z: Any) -> tuple[Any, Any, Any]:
        """Half width, half depth and y of the middle of the space inside the ribs at height z."""
        up = np.clip((z - 5.0) / 128.0, 0.0, 0.995)
        taper = (1 - up**2.5) ** (1 / 2.5)
        low = smoothstep(-z, 40.0, 190.0)
        width = (112.0 - 6.0 * low) * taper + 0.01
        depth = (80.0 + 3.0 * smoothstep(-z, 0.0, 100.0)) * taper + 0.01
        return width, depth, 3.0 + 16.0 * up**1.3

    def cavity(self, x: Any, y: Any, z: Any) -> Any:
        a, b, middle = self.cavity_axes(z)
        radial = ellipse(x, y - middle, a, b, 2.35)
        # Near the apex the wall leans inwards: a radial distance would be too long there.
        lean = np.cos(np.clip((z - 5.0) / 128.0, 0.0, 1.0) ** 3 * 1.1)
        return np.maximum(radial * lean, z - 132.0)

    def heart(self, x: Any, y: Any, z: Any) -> Any:
        shift = self.heart_shift
        turned_x = 0.86 * (x - shift - 16) + 0.5 * (y + 16)
        turned_y = -0.5 * (x - shift - 16) + 0.86 * (y + 16)
        # The apex points to the left, forward and down.
        return ellipsoid(turned_x, turned_y, z + 0.25 * turned_x, (0, 0, -35), (55, 44, 49))

    def chambers(self, x: Any, y: Any, z: Any) -> Any:
        h = self.heart_shift
        return np.minimum.reduce(
            [
                ellipsoid(x, y, z, (39 + h, -8, -44), (22, 18, 25)),
                ellipsoid(x, y, z, (14 + h, -38, -38), (27, 13, 26)),
                ellipsoid(x, y, z, (8 + h, 15, -16), (28, 12, 17)),
                ellipsoid(x, y, z, (-20 + h, -14, -34), (15, 20, 27)),
            ]
        )

    def dome_height(self, x: Any, y: Any) -> Any:
        """Height z of the diaphragm: two domes, low at the back and at the sides."""
        heights = []
        for side, x_top in ((-1, -52.0), (1, 56.0)):
            rho = ((x - x_top) / 78.0) ** 2 + ((y + 18.0) / 82.0) ** 2
            heights.append(self.dome[side] + 18.0 - 82.0 * (np.sqrt(rho + 0.05) ** 1.7))
        return -_union(-heights[0], -heights[1], rounding=20.0)

    def mediastinum(self, x: Any, y: Any, z: Any) -> Any:
        spine = self.spine_y(z)
        behind = ellipse(x, y - spine - 24, 40.0, 24.0)
        vertebra = ellipse(x, y - spine, 19.0, 16.0)
        airway = ellipse(x - 2.0, y - 22.0, 14.0, 19.0)
        upper = np.maximum(ellipse(x + 1.0, y + 2.0, 27.0, 26.0), 45.0 - z)
        width = 4.0 + 8.0 * smoothstep(z, 20.0, 90.0) + 10.0 * smoothstep(-y, 58.0, 82.0)
        front = np.maximum(np.abs(x - 3.0) - width, y - 5.0)
        vessels = self.great_vessels.widened(2.5).distance(self.axes)
        hila = [ellipsoid(x, y, z, (0.75 * p[0], p[1] + 1, p[2] - 4), (20, 15, 24)) for p in HILA.values()]
        return _union(behind, vertebra, airway, upper, front, self.heart(x, y, z) - 4.0, vessels, *hila)

    def body(self, x: Any, y: Any, z: Any) -> Any:
        shoulders = smoothstep(z, 20.0, 150.0)
        a = 146.0 + self.fat_mm - 10 + 14.0 * shoulders - 5.0 * bump(np.asarray(z), -60.0, 60.0)
        b = 104.0 + 0.7 * (self.fat_mm - 10) - 12.0 * shoulders
        outline = ellipse(x, y - 6.0 - 6.0 * shoulders, a, b, 2.5)
        groove = 5.0 * bump(x, 0.0, 14.0) * smoothstep(y, 60.0, 100.0)
        return outline + groove

    def _fields(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
        """Smooth organs on the coarse grid, float32 ``[z, y, x]``."""
        cavity = self.cavity(x, y, z)
        mediastinum = self.mediastinum(x, y, z)
        below = 0.8 * (self.dome_height(x, y) - z)
        lung = intersection(cavity, -mediastinum, below, rounding=5.0)
        noise = [self._smooth_noise(cavity.shape, sigma) for sigma in (1.2, 2.5)]
        fields = {
            "body": self.body(x, y, z) + 1.5 * noise[1],
            "cavity": cavity,
            "lung": lung + 0.8 * noise[1],
            "abdomen": np.maximum(cavity, -below) + 0 * x,
            "fine": noise[0],
            "broad": noise[1],
        }
        return {name: np.ascontiguousarray(field, dtype=np.float32) for name, field in fields.items()}

    def _smooth_noise(self, shape: tuple[int, ...], sigma: float) -> np.ndarray:
        """Unit-variance noise correlated over ``sigma`` coarse cells."""
        noise = self.rng.standard_normal(shape, dtype=np.float32)
        for axis in range(3):
            noise = blur(noise, axis, sigma)
        return noise / noise.std()

    def tubes(self) -> dict[str, Tubes]:
        """Everything tubular: ``vessels``, and of the airways ``walls`` (outer radius) and ``lumens``."""
        vessels, walls, lumens = [self.great_vessels], [], []
        trachea = _curve([(0, 4, 200), (0, 6, 130), (0, 12, 70), _CARINA], [8.5, 8.5, 8.5, 9.0])
        walls.append(trachea.widened(1.6))
        lumens.append(trachea)
        for side, hilum in HILA.items():
            points = self._lung_points(side)
            artery = _Tree(self.rng, points[::2], np.array(hilum), leaf_radius=0.38)
            vein_root = np.array([hilum[0], hilum[1] - 4, hilum[2] - 24])
            vein = _Tree(self.rng, points[1::2], vein_root, leaf_radius=0.38)
            vessels += [artery.tubes, vein.tubes]
            bronchus = (hilum[0] + 2.0 * side, hilum[1] + 5.0, hilum[2] - 9.0)
            bend = [(a + b) / 2 + c for a, b, c in zip(_CARINA, bronchus, (0, 1, 2), strict=True)]
            main = _curve([_CARINA, bend, bronchus], [7.5, 6.5, 5.0])
            # Airways run beside the arteries and are about as wide.
            large = (artery.tubes.start_radius > 1.4) & self._in_lung(artery.tubes.start)
            near = Tubes(
                artery.tubes.start[large], artery.tubes.stop[large],
                artery.tubes.start_radius[large], artery.tubes.stop_radius[large],
            )  # fmt: skip
            beside = np.array([0.25 * side, 0.85, -0.45])
            airway = Tubes(
                near.start + beside * (1.85 * near.start_radius + 1.0)[:, None],
                near.stop + beside * (1.85 * near.stop_radius + 1.0)[:, None],
                0.85 * near.start_radius,
                0.85 * near.stop_radius,
            )
            for lumen, wall in ((main, 1.2), (airway, 0.45)):
                lumens.append(lumen)
                walls.append(lumen.widened(wall))
        return {
            "vessels": Tubes.join(vessels),
            "walls": Tubes.join(walls),
            "lumens": Tubes.join(lumens),
        }

    def _in_lung(self, points: np.ndarray) -> np.ndarray:
        """``[P]`` bool of points (x, y, z) ``[P, 3]``, to the coarse grid's precision."""
        index = [
            np.clip(np.rint((points[:, 2 - i] - axis[0]) / _COARSE).astype(int), 0, len(axis) - 1)
            for i, axis in enumerate(self.axes)
        ]
        return self.fields["lung"][tuple(index)] < 0

    def _lung_points(self, side: int) -> np.ndarray:
        """Random points (x, y, z) ``[2600, 3]`` in one lung, none within 4 mm of its surface."""
        z, y, x = np.nonzero((self.fields["lung"] < -6.0) & (np.sign(self.axes[2]) == side))
        picked = self.rng.choice(len(z), size=2600, replace=False)
        chosen = [axis[i[picked]] for axis, i in zip(self.axes[::-1], (x, y, z), strict=True)]
        points = np.stack(chosen, axis=1)
        return points + self.rng.uniform(-_COARSE / 2, _COARSE / 2, points.shape)


class _Tree:
    """A vessel tree from a root to every target point.

    The vessel runs part of the way to the middle of its targets and forks; the targets are shared out,
    unevenly, by the direction in which they lie; so on until one is left. A vessel that feeds n targets has
    radius ``leaf_radius * n ** (1 / 2.8)``, close to Murray's law, so that only the trunks are wide.
    """

    def __init__(
        self, rng: np.random.Generator, targets: np.ndarray, root: np.ndarray, leaf_radius: float
    ) -> None:
        pieces: list[Tubes] = []
        outward = targets.mean(0) - root
        stack = [(root, outward / np.linalg.norm(outward), targets, leaf_radius * len(targets) ** (1 / 2.8))]
        while stack:
            position, direction, points, radius = stack.pop()
            count = len(points)
            own = leaf_radius * count ** (1 / 2.8)
            middle = points.mean(0)
            reach = 1.0 if count == 1 else float(rng.uniform(0.25, 0.5))
            end = position + reach * (middle - position)
            length = float(np.linalg.norm(end - position))
            # Leaves the parent smoothly and wanders a little.
            bend = position + 0.35 * length * direction + rng.normal(0.0, 0.03 * length, 3)
            steps = max(2, round(length / 4.0))
            t = np.linspace(0.0, 1.0, steps + 1)[:, None]
            path = (1 - t) ** 2 * position + 2 * t * (1 - t) * bend + t**2 * end
            pieces.append(Tubes.along(path, np.linspace(min(radius, 1.25 * own), own, steps + 1)))
            if count == 1:
                continue
            heading = path[-1] - path[-2]
            heading /= max(float(np.linalg.norm(heading)), 1e-6)
            # Split by direction as seen from the fork, not by position: the vessels radiate.
            towards = points - end
            towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-6)
            offsets = towards - towards.mean(0)
            _, axes = np.linalg.eigh(offsets.T @ offsets)
            order = np.argsort(offsets @ (axes[:, 2] + rng.normal(0.0, 0.15, 3)))
            cut = min(max(1, round(count * float(rng.uniform(0.3, 0.7)))), count - 1)
            stack.append((end, heading, points[order[:cut]], own))
            stack.append((end, heading, points[order[cut:]], own))
        self.tubes = Tubes.join(pieces)
