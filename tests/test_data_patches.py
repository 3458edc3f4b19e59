"""Samplers, augmentation and the loader: against SciPy, NumPy, MONAI and exact counts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from volnet.data import (
    BalancedSampler,
    GridSampler,
    PasteNodules,
    PatchLoader,
    RandomAffine,
    RandomBlur,
    RandomFlip,
    RandomGamma,
    RandomNoise,
    RandomPermutation,
    RandomRotate90,
    RandomScaleShift,
    UniformSampler,
    VolumeStore,
    WeightedSampler,
    WholeVolumeSampler,
    Window,
)
from volnet.data.augment import SpatialTransform
from volnet.data.patches import AnyTransform, make_patch

pytest.importorskip("numba")

SHAPE = (40, 50, 60)
Array = np.ndarray


def smooth(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (ndimage.gaussian_filter(noise, 2) * 20000).astype(np.int16)


def one_volume(image: Array, **kwargs: Any) -> VolumeStore:
    store = VolumeStore(compressed=kwargs.pop("compressed", False))
    store.add(image, **kwargs)
    return store


def patch(
    store: VolumeStore,
    center: Sequence[int],
    size: Sequence[int],
    transforms: Sequence[AnyTransform] = (),
    pad: float = -1024,
    seed: int = 0,
) -> tuple[Array, Array, Array, Array]:
    image, label = np.full(size, np.nan, np.float32), np.full(size, 99, np.uint8)
    rng = np.random.default_rng(seed)
    boxes, ids = make_patch(store[0], np.array(center), transforms, rng, pad, image, label)
    return image, label, boxes, ids


class Fixed(SpatialTransform):
    def __init__(self, matrix: Any) -> None:
        self.value = np.array(matrix, float)

    def matrix(self, rng: np.random.Generator, spacing: Sequence[float]) -> Array:
        return self.value


# Signed permutations: all 48 ways to lay a cube on itself.
CUBE = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def moved(matrix: Array, center: Sequence[int], size: Sequence[int]) -> tuple[Array, Array]:
    """The map of the documentation: about the middle of the voxels [center - size // 2, ... + size)."""
    extent = np.array(size)
    middle = (extent - 1) / 2
    return matrix, np.array(center) - extent // 2 + middle - matrix @ middle


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("center", [(20, 25, 30), (2, 48, 59), (-30, 0, 0)], ids=["in", "edge", "out"])
def test_flips_and_permutations_move_whole_voxels(compressed: bool, center: tuple[int, ...]) -> None:
    pytest.importorskip("blosc2")
    image, label = smooth(), (smooth(seed=1) > 900).astype(np.uint8)
    store = one_volume(image, label=label, compressed=compressed)
    size = (12, 14, 16)
    for matrix in CUBE:
        got, got_label, _, _ = patch(store, center, size, [Fixed(matrix)])
        linear, offset = moved(matrix, center, size)
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        places = grid @ linear.T + offset
        assert np.array_equal(places, np.rint(places))
        index = places.astype(int)
        inside = ((index >= 0) & (index < SHAPE)).all(axis=-1)
        index = np.where(inside[..., None], index, 0)
        assert np.array_equal(got, np.where(inside, image[tuple(np.moveaxis(index, -1, 0))], -1024))
        assert np.array_equal(got_label, np.where(inside, label[tuple(np.moveaxis(index, -1, 0))], 0))


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("kind", ["rotation", "shear", "scale", "scaled_turn"])
def test_one_resampling_pass_is_scipys(kind: str, compressed: bool) -> None:
    pytest.importorskip("blosc2")
    matrix = {
        "rotation": RandomAffine(40, (0.7, 1.4), p=1).matrix(np.random.default_rng(3), (1, 1, 1)),
        "shear": np.array([[1, 0.21, 0], [0, 1, -0.33], [0.13, 0, 1]]),
        "scale": np.diag([0.8, 1.3, 0.5]),
        "scaled_turn": np.array([[0, 0.9, 0], [-1.1, 0, 0], [0, 0, 0.7]]),
    }[kind]
    image = smooth()
    label = (ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(SHAPE), 3) > 0) * 3
    store = one_volume(image, label=label, compressed=compressed)
    size = (21, 22, 24)
    for center in ((20, 25, 30), (4, 45, 55)):
        got, got_label, _, _ = patch(store, center, size, [Fixed(matrix)], pad=-500)
        linear, offset = moved(np.asarray(matrix), center, size)
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
        places = grid @ linear.T + offset
        inside = ((places >= -0.5) & (places < np.array(SHAPE) - 0.5)).all(axis=-1)
        # Between the outer centres and the volume's end the voxel at the edge goes on.
        expected = ndimage.map_coordinates(
            image.astype(np.float64), np.moveaxis(places, -1, 0), order=1, mode="nearest"
        )
        difference = np.abs(got - np.where(inside, expected, -500))
        # float32 places are exact to 64 voxels' rounding, 4e-6, of steps of thousands between neighbours
        on_border = (np.abs(places + 0.5) < 1e-3) | (np.abs(places - np.array(SHAPE) + 0.5) < 1e-3)
        assert difference[~on_border.any(axis=-1)].max() < 0.05
        index = np.floor(places + 0.5).astype(int)
        whole = ((index >= 0) & (index < SHAPE)).all(axis=-1)
        index = np.where(whole[..., None], index, 0)
        expected_label = np.where(whole, label[tuple(np.moveaxis(index, -1, 0))], 0)
        assert (got_label != expected_label).mean() < 1e-3  # ties
        assert expected_label.any()


def test_affine_agrees_with_monai() -> None:
    transforms = pytest.importorskip("monai.transforms")
    image = smooth((32, 32, 32))
    angle, zoom = 0.3, 1.2
    # MONAI's matrix takes places of the result, counted from the middle, to those of the source.
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) / zoom
    affine = np.eye(4)
    affine[:3, :3] = matrix
    monai = transforms.Affine(affine=torch.from_numpy(affine), padding_mode="zeros", mode="bilinear")
    expected = monai(torch.from_numpy(image[None].astype(np.float32)))[0][0].numpy()
    got, _, _, _ = patch(one_volume(image), (16, 16, 16), (32, 32, 32), [Fixed(matrix)], pad=0)
    inner = (slice(3, -3),) * 3  # MONAI fades to zero over the last voxel
    assert np.abs(got[inner] - expected[inner]).max() < 0.5  # of values of thousands


def test_rotation_is_in_mm() -> None:
    spacing = (2.5, 0.7, 0.7)
    transform = RandomAffine(30, (0.8, 1.3), p=1)
    for seed in range(5):
        matrix = transform.matrix(np.random.default_rng(seed), spacing)
        assert matrix is not None
        in_mm = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
        squared = in_mm @ in_mm.T
        assert np.allclose(squared, squared[0, 0] * np.eye(3), atol=1e-12)
        assert 1 / 1.3 <= np.sqrt(squared[0, 0]) <= 1 / 0.8


@pytest.mark.parametrize("seed", range(8))
def test_a_painted_box_stays_where_its_box_is(seed: int) -> None:
    box = np.array([12, 20, 17, 19, 31, 26])
    image = np.full(SHAPE, -1000, np.int16)
    image[tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))] = 100
    store = one_volume(image, label=image > 0, boxes=[box])
    turns: list[AnyTransform] = [RandomFlip(), RandomPermutation(p=1), RandomRotate90(p=1)]
    for scale in (1.0, 2.0, 0.5):
        transforms = [*turns, Fixed(np.eye(3) / scale)]
        got, label, boxes, ids = patch(store, (18, 27, 24), (33, 35, 40), transforms, seed=seed)
        painted = np.argwhere(got > -450)
        assert ids.tolist() == [0]
        # A voxel of which half is in a scaled box is painted or not.
        slack = 0 if scale == 1 and np.array_equal(boxes, np.rint(boxes)) else 1.01
        assert np.abs(boxes[0, :3] - painted.min(axis=0)).max() <= slack
        assert np.abs(boxes[0, 3:] - painted.max(axis=0) - 1).max() <= slack
        assert ((label > 0) == (got > -450)).mean() >= (1 if slack == 0 else 0.98)


@pytest.mark.parametrize("seed", range(8))
def test_a_painted_ball_stays_in_its_box_when_it_is_turned(seed: int) -> None:
    middle, radius = np.array([20, 26, 33]), 8.5
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    ball = ((grid - middle) ** 2).sum(axis=-1) < radius**2
    box = np.concatenate([middle + 0.5 - radius, middle + 0.5 + radius])
    store = one_volume(np.where(ball, 1000, 0), label=ball, boxes=[box])
    transforms = [RandomFlip(), RandomAffine(45, (0.8, 1.2), p=1)]
    got, label, boxes, _ = patch(store, (19, 24, 31), (48, 48, 48), transforms, pad=0, seed=seed)
    for painted in (np.argwhere(got > 500), np.argwhere(label)):
        assert np.abs(boxes[0, :3] - painted.min(axis=0)).max() < 1.1
        assert np.abs(boxes[0, 3:] - painted.max(axis=0) - 1).max() < 1.1


def test_boxes_at_the_border_are_clipped_and_left_out_below_half() -> None:
    boxes = [[0, 0, 0, 4, 4, 4], [10, 10, 10, 16, 14, 14], [10, 10, 10, 18, 14, 14], [30, 30, 30, 34, 34, 34]]
    store = one_volume(smooth(), boxes=boxes)
    _, _, got, ids = patch(store, (7, 10, 10), (12, 20, 20))  # d: 1..13
    assert ids.tolist() == [0, 1]
    assert got.tolist() == [[0, 0, 0, 3, 4, 4], [9, 10, 10, 12, 14, 14]]


def test_intensity_is_numpys_in_the_order_given() -> None:
    store = one_volume(smooth())
    plain = patch(store, (20, 25, 30), (16, 16, 17))[0].astype(np.float64)

    cases: list[tuple[list[AnyTransform], Any]] = [
        ([Window(-1000, 400)], lambda x: np.clip((x + 1000) / 1400, 0, 1)),
        ([RandomScaleShift((2, 2), (5, 5), p=1)] * 2, lambda x: (x * 2 + 5) * 2 + 5),
        (
            [Window(-1000, 400), RandomGamma((0.7, 0.7), p=1), RandomScaleShift((2, 2), (1, 1), p=1)],
            lambda x: np.clip((x + 1000) / 1400, 0, 1) ** 0.7 * 2 + 1,
        ),
        (
            [
                RandomScaleShift((2, 2), (-300, -300), p=1),
                Window(-1000, 400),
                RandomScaleShift((2, 2), (-0.5, -0.5), p=1),
                Window(0, 1),
                RandomGamma((1.5, 1.5), p=1),
                RandomGamma((0.5, 0.5), p=1),
            ],
            lambda x: np.clip(np.clip((x * 2 + 700) / 1400, 0, 1) * 2 - 0.5, 0, 1) ** 0.75,
        ),
        (
            [RandomBlur((1.5, 1.5), p=1), Window(-100, 100)],
            lambda x: np.clip((ndimage.gaussian_filter(x, 1.5, mode="nearest") + 100) / 200, 0, 1),
        ),
        (
            [Window(-100, 100), RandomBlur((1.5, 1.5), p=1), RandomScaleShift((3, 3), p=1)],
            lambda x: ndimage.gaussian_filter(np.clip((x + 100) / 200, 0, 1), 1.5, mode="nearest") * 3,
        ),
    ]
    for transforms, expected in cases:
        got = patch(store, (20, 25, 30), (16, 16, 17), transforms)[0]
        # float32 of values of thousands; the power's logarithm is good to 6e-7
        assert np.allclose(got, expected(plain), rtol=3e-6, atol=3e-6 * np.abs(expected(plain)).max())


def test_noise_is_normal_and_independent() -> None:
    store = one_volume(np.zeros((64, 64, 65), np.int16))
    fields = [
        patch(store, (32, 32, 32), (64, 64, 65), [RandomNoise((1, 1), p=1)], seed=seed)[0].astype(np.float64)
        for seed in range(8)
    ]
    values = np.concatenate([f.ravel() for f in fields])
    # Five standard errors of n normal numbers each.
    n = len(values)
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    for axis in range(3):
        for field in fields[:2]:
            neighbours = field * np.roll(field, 1, axis)
            assert abs(neighbours.mean()) < 5 / np.sqrt(field.size)
    assert abs((fields[0] * fields[1]).mean()) < 5 / np.sqrt(fields[0].size)
    # The two halves of a plane share a radius: not a value.
    flat = fields[0].reshape(64, -1)
    half = (flat.shape[1] + 1) // 2
    assert abs((flat[:, : flat.shape[1] - half] * flat[:, half:]).mean()) < 5 / np.sqrt(flat.size / 2)


def test_noise_is_finite_for_every_hash() -> None:
    kernels = pytest.importorskip("volnet.data.patch_kernels")
    from numba import njit

    @njit
    def pair(i: Any, key: Any) -> Any:
        return kernels._normal_pair(i, key, np.uint32(5), np.float32(-2))

    # _hash is a bijection: where it is at its ends is found by its inverse, step by step.
    def unhash(x: int) -> int:
        mask = 0xFFFFFFFF
        x ^= x >> 16
        x = x * pow(0x846CA68B, -1, 1 << 32) & mask
        x ^= x >> 15 ^ x >> 30
        x = x * pow(0x7FEB352D, -1, 1 << 32) & mask
        return x ^ x >> 16

    for value in (0, 1, 2, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFF00, 0x7FFFFFFF):
        radius = np.hypot(*pair(np.uint32(unhash(value)), np.uint32(0)))
        uniform = np.float64((value >> 1) | 1) / 2**31
        assert np.isclose(radius, np.sqrt(-2 * np.log(uniform)), rtol=1e-5, atol=3e-3)


def test_pasted_nodules_are_in_their_boxes_and_keep_apart() -> None:
    image = np.full((80, 80, 80), -800, np.int16)
    image[:, :, :20] = 0  # wall
    store = one_volume(image, boxes=[[40, 40, 40, 50, 50, 50]], spacing=(1.25, 0.8, 0.8))
    pasted = 0
    for seed in range(10):
        transforms = [PasteNodules(count=3, density=(50, 50), label=7, p=1)]
        got, label, boxes, ids = patch(store, (40, 40, 40), (80, 80, 80), transforms, seed=seed)
        assert ids[0] == 0
        assert (ids[1:] == -1).all()
        pasted += len(ids) - 1
        changed = got != image
        assert (got[changed] > image[changed]).all()
        assert got.max() <= 50
        inside = np.zeros(image.shape, bool)
        for box in boxes[1:].astype(int):
            part = tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))
            assert not inside[part].any()
            inside[part] = True
            solid = np.argwhere(label[part] == 7)
            assert solid.min(axis=0).tolist() == [0, 0, 0]
            assert (solid.max(axis=0) + 1 == box[3:] - box[:3]).all()
            assert (got[part][label[part] == 7] > -400).mean() > 0.9
        assert not (label[~inside] == 7).any()
    assert pasted >= 10


def test_uniform_centres_are_uniform_and_inside() -> None:
    store = one_volume(np.zeros((6, 9, 8), np.int16))
    sampler = UniformSampler(store, (4, 9, 11))
    rng = np.random.default_rng(0)
    centers = np.array([sampler.center(0, 0, rng) for _ in range(600)])
    assert set(centers[:, 0]) == {2, 3, 4}
    assert stats.chisquare(np.unique(centers[:, 0], return_counts=True)[1]).pvalue > 1e-3
    assert set(centers[:, 1]) == {4}
    assert set(centers[:, 2]) == {-1 + 5}  # three voxels too many: one in front, two behind


@pytest.mark.parametrize("size", [3, 4])
def test_balanced_centres_are_uniform_over_each_kind(size: int) -> None:
    label = np.zeros((33, 40, 70), np.uint8)  # more than one block, odd ones at the ends
    places = [(1, 1, 1), (32, 39, 69), (31, 31, 31), (32, 32, 32), (5, 35, 64), (0, 20, 33)]
    for place in places:
        label[place] = 1 + place[0] % 3
    store = one_volume(np.zeros(label.shape, np.int16), label=label)
    sampler = BalancedSampler(store, size, positive=0.75)
    rng = np.random.default_rng(0)
    centers = [tuple(sampler.center(0, 0, rng).tolist()) for _ in range(3000)]
    low, high = size // 2, np.array(label.shape) - size + size // 2
    allowed = [tuple(np.clip(place, low, high).tolist()) for place in places]
    hits = [sum(c == a for c in centers) for a in allowed]
    positive = sum(hits)
    assert stats.binomtest(positive, 3000, 0.75).pvalue > 1e-3
    assert stats.chisquare(hits).pvalue > 1e-3
    negative = np.array([c for c in centers if c not in allowed])
    upper = np.histogram(negative[:, 2], bins=[0, 14, 28, 42, 56, 70])[0]
    assert stats.chisquare(upper).pvalue > 1e-4


def test_balanced_centres_agree_with_monai() -> None:
    monai = pytest.importorskip("monai.transforms.utils")
    label = (smooth((24, 20, 30)) > 1200).astype(np.uint8)
    store = one_volume(smooth((24, 20, 30)), label=label)
    foreground, background = monai.map_binary_to_indices(label[None])
    state, rng = np.random.RandomState(0), np.random.default_rng(0)
    size = (9, 8, 13)
    theirs = np.array(
        monai.generate_pos_neg_label_crop_centers(size, 3000, 0.3, label.shape, foreground, background, state)
    )
    sampler = BalancedSampler(store, size, positive=0.3)
    ours = np.array([sampler.center(0, 0, rng) for _ in range(3000)])
    for axis in range(3):
        values = np.union1d(ours[:, axis], theirs[:, axis])
        table = [[(x[:, axis] == v).sum() for v in values] for x in (ours, theirs)]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_balanced_without_a_kind_takes_the_other() -> None:
    rng = np.random.default_rng(0)
    for label in (np.zeros((8, 8, 8)), np.ones((8, 8, 8))):
        sampler = BalancedSampler(one_volume(np.zeros((8, 8, 8), np.int16), label=label), 2)
        assert len({tuple(sampler.center(0, 0, rng)) for _ in range(50)}) > 10


def test_balanced_by_boxes() -> None:
    store = one_volume(
        np.zeros((40, 40, 40), np.int16), boxes=[[5, 6, 7, 8, 9, 10], [20, 20, 20, 30, 30, 30]]
    )
    rng = np.random.default_rng(0)
    sampler = BalancedSampler(store, 2, positive=1)
    inside = np.array([store[0].boxes[:, :3] <= sampler.center(0, 0, rng) for _ in range(400)]).all(axis=2)
    assert stats.binomtest(int(inside[:, 1].sum()), 400, 0.5).pvalue > 1e-3
    sampler = BalancedSampler(store, 2, positive=0)
    for _ in range(300):
        center = sampler.center(0, 0, rng)
        boxes = store[0].boxes
        assert not ((boxes[:, :3] <= center) & (center < boxes[:, 3:])).all(axis=1).any()
    sampler = BalancedSampler(one_volume(np.zeros((4, 4, 4), np.int16)), 2, positive=1)
    sampler.center(0, 0, rng)


def test_index_memory_does_not_grow_with_the_label() -> None:
    label = np.ones((128, 128, 128), np.uint8)
    sampler = BalancedSampler(one_volume(np.zeros(label.shape, np.int16), label=label), 8)
    index = sampler._index[0]
    assert index is not None
    assert sum(c.nbytes for c in index._cumulative) == 2 * 8 * 4**3  # a voxel list would take 16 MiB


def test_weighted_centres_follow_the_weights() -> None:
    weights = np.zeros((40, 33, 50), np.float32)
    places = {(1, 1, 1): 1.0, (39, 32, 49): 2.0, (20, 32, 40): 3.0, (20, 32, 41): 4.0}
    for place, weight in places.items():
        weights[place] = weight
    sampler = WeightedSampler(one_volume(np.zeros(weights.shape, np.int16)), 1, [weights])
    rng = np.random.default_rng(0)
    centers = [tuple(sampler.center(0, 0, rng).tolist()) for _ in range(2000)]
    hits = [centers.count(place) for place in places]
    assert stats.chisquare(hits, [200, 400, 600, 800]).pvalue > 1e-3


@pytest.mark.parametrize("value", [-1.0, np.nan, 0.0], ids=["negative", "nan", "all_zero"])
def test_weights_that_are_none(value: float) -> None:
    weights = np.zeros((4, 4, 4))
    weights[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"^v: weights must be"):
        WeightedSampler(one_volume(np.zeros((4, 4, 4), np.int16), name="v"), 2, [weights])


@pytest.mark.parametrize("overlap", [0, 3])
def test_the_grid_covers_every_voxel(overlap: int) -> None:
    store = VolumeStore()
    for shape in ((10, 17, 23), (3, 8, 30)):
        store.add(np.zeros(shape, np.int16))
    sampler = GridSampler(store, (5, 8, 9), overlap=overlap)
    covered = [np.zeros(v.shape, int) for v in store]
    volumes = sampler.volumes(None)
    for index, volume in enumerate(volumes):
        start = sampler.center(index, volume, None) - np.array((5, 8, 9)) // 2
        part = tuple(slice(max(a, 0), a + n) for a, n in zip(start, (5, 8, 9), strict=True))
        covered[volume][part] += 1
        if volume == 0:
            assert (start >= 0).all()
            assert (start + np.array((5, 8, 9)) <= store[0].shape).all()
    assert all((c > 0).all() for c in covered)


def loader_store(count: int = 3) -> VolumeStore:
    store = VolumeStore()
    for seed in range(count):
        label = np.zeros(SHAPE, np.uint8)
        label[10 + seed : 14, 20:25, 30:40] = 1
        store.add(smooth(seed=seed), label=label, boxes=[[10 + seed, 20, 30, 14, 25, 40]])
    return store


EVERYTHING: list[AnyTransform] = [
    RandomFlip(),
    RandomRotate90(),
    RandomAffine(),
    PasteNodules(),
    RandomBlur(),
    Window(-1000, 400),
    RandomGamma(),
    RandomScaleShift(),
    RandomNoise(),
]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        all(map(torch.equal, a[k], b[k])) if isinstance(a[k], list) else torch.equal(a[k], b[k]) for k in a
    )


def make_loader(threads: int = 2, **kwargs: Any) -> PatchLoader:
    store = loader_store()
    sampler = BalancedSampler(store, 24, patches_per_volume=5)
    return PatchLoader(store, sampler, EVERYTHING, 2, threads=threads, seed=7, **kwargs)


def test_batches_are_the_same_for_any_number_of_threads() -> None:
    one, five = make_loader(1), make_loader(5, prefetch=4)
    for epoch in range(2):
        first, second = list(one), list(five)
        assert len(first) == len(second) == len(one) == 8
        assert all(map(equal, first, second)), epoch
    again = list(make_loader(2))
    assert not any(map(equal, again, first)), "an epoch of its own each time"
    assert first[0]["image"].shape == (2, 1, 24, 24, 24)
    assert first[-1]["image"].shape == (1, 1, 24, 24, 24)
    assert sorted(torch.cat([b["volume"] for b in first]).tolist()) == [0] * 5 + [1] * 5 + [2] * 5


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_rest() -> None:
    whole = make_loader()
    list(whole)
    second_epoch = list(whole)
    broken = make_loader()
    list(broken)
    for _, batch in zip(range(3), broken, strict=False):
        assert equal(batch, second_epoch[_])
    state = broken.state_dict()
    resumed = make_loader(3)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 5
    assert all(map(equal, rest, second_epoch[3:]))
    assert resumed.epoch == 2
    assert all(map(equal, list(broken), second_epoch[3:])), "a loop that was left goes on"
    with pytest.raises(ValueError, match="batch_size 2, this loader 1"):
        PatchLoader(broken.store, broken.sampler).load_state_dict(state)


def test_ranks_share_an_epoch() -> None:
    whole = list(make_loader())
    ranks = [list(make_loader(rank=r, ranks=3)) for r in range(3)]
    assert [len(r) for r in ranks] == [2, 2, 2]
    for number in range(6):
        assert equal(ranks[number % 3][number // 3], whole[number])


def test_the_caller_keeps_its_threads_and_workers_end() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loader = make_loader()
        iterator = iter(loader)
        next(iterator)
        assert torch.get_num_threads() == 2
        del iterator
        list(loader)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert not [t for t in threading.enumerate() if t.name.startswith("volnet-patches")]


def test_whole_volumes_and_volumes_of_different_shapes() -> None:
    store = VolumeStore()
    for depth in (7, 9):
        store.add(smooth((depth, 10, 11)))
    sampler = WholeVolumeSampler(store)
    got = {int(b["volume"]): b["image"] for b in PatchLoader(store, sampler)}
    for number, stored in enumerate(store):
        assert torch.equal(got[number][0, 0], stored.voxels.float())
    assert "label" not in next(iter(PatchLoader(store, sampler)))
    with pytest.raises(ValueError, match=r"one shape, got \[\(7, 10, 11\), \(9, 10, 11\)\]"):
        list(PatchLoader(store, sampler, batch_size=2))


def test_patches_larger_than_the_volume() -> None:
    store = one_volume(smooth((5, 6, 7)), label=np.ones((5, 6, 7)))
    (batch,) = PatchLoader(store, UniformSampler(store, 12), pad_value=-2000)
    image = batch["image"][0, 0]
    assert (image == -2000).sum() == 12**3 - 5 * 6 * 7 - (store[0].voxels == -2000).sum()
    assert int(batch["label"].sum()) == 5 * 6 * 7
    assert torch.equal(image[3:8, 3:9, 2:9], store[0].voxels.float())


def test_an_error_in_a_thread_reaches_the_loop_and_can_be_retried() -> None:
    class Failing(RandomGamma):
        fails = True

        def draw(self, rng: np.random.Generator) -> None:
            if self.fails:
                raise ArithmeticError("no gamma today")

    store, transform = loader_store(), Failing()
    loader = PatchLoader(store, UniformSampler(store, 8), [transform])
    with pytest.raises(ArithmeticError, match="no gamma today"):
        list(loader)
    transform.fails = False
    assert len(list(loader)) == 3


def test_wrong_arguments() -> None:
    store = loader_store(1)
    sampler = UniformSampler(store, 8)
    with pytest.raises(ValueError, match="spatial transforms come before the others, got RandomFlip"):
        PatchLoader(store, sampler, [Window(0, 1), RandomFlip()])
    with pytest.raises(TypeError, match="not a transform"):
        PatchLoader(store, sampler, [lambda x: x])  # type: ignore[list-item]
    for argument in ({"batch_size": 0}, {"threads": 0}, {"seed": -1}, {"rank": 1}, {"prefetch": 0}):
        (name,) = argument
        with pytest.raises(ValueError, match=f"{name} must be"):
            PatchLoader(store, sampler, **argument)  # type: ignore[arg-type]
    for make, message in (
        (lambda: UniformSampler(VolumeStore(), 8), "no volumes"),
        (lambda: UniformSampler(store, (8, 8)), r"got \(8, 8\)"),
        (lambda: UniformSampler(store, 8, patches_per_volume=0), "got 0"),
        (lambda: BalancedSampler(store, 8, positive=1.5), "got 1.5"),
        (lambda: GridSampler(store, 8, overlap=8), "got 8"),
        (lambda: WeightedSampler(store, 8, []), "of 0 volumes, the store has 1"),
        (lambda: RandomFlip((0, 3)), r"got \(0, 3\)"),
        (lambda: RandomFlip(p=2), "got 2"),
        (lambda: RandomRotate90((1,)), r"got \(1,\)"),
        (lambda: RandomAffine(-1), "got -1"),
        (lambda: RandomAffine(1, (0, 1)), r"got \(0, 1\)"),
        (lambda: Window(1, 1), "got 1 to 1"),
        (lambda: RandomGamma((0, 1)), r"got \(0, 1\)"),
        (lambda: RandomNoise((-1, 1)), r"got \(-1, 1\)"),
        (lambda: RandomBlur((2, 1)), r"got \(2, 1\)"),
        (lambda: PasteNodules(count=0), "got 0"),
        (lambda: PasteNodules(label=256), "got 256"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
