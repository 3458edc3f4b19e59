from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from volnet.data import InvalidScanError, VolumeStore, chest_phantom, read_labels

pytest.importorskip("blosc2")

SHAPE = (40, 50, 70)


def voxels(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def write(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_what_goes_in_comes_out(shared: bool, compressed: bool) -> None:
    store = VolumeStore(shared=shared, compressed=compressed)
    arrays = [voxels(i, (20 + 17 * i, 33, 64 - 31 * i)) for i in range(3)]
    for array in arrays:
        store.add(array, label=(array > 0), boxes=[[0, 1, 2, 3, 4, 5]], spacing=(2, 1, 0.5))
    for array, stored in zip(arrays, store, strict=True):
        assert torch.equal(stored.voxels, torch.from_numpy(array))
        assert stored.label is not None
        assert torch.equal(stored.label, torch.from_numpy(array > 0).to(torch.uint8))
        assert stored.boxes.tolist() == [[0, 1, 2, 3, 4, 5]]
        assert stored.spacing == (2, 1, 0.5)
        region = stored.region((3, 5, 1), (20, 33, 2))
        assert torch.equal(region, torch.from_numpy(array[3:20, 5:33, 1:2]))


def test_many_volumes_share_memory_that_grows() -> None:
    store = VolumeStore()
    arrays = [voxels(i, (90 + i, 128, 128)) for i in range(8)]  # 24 MB: more than the first slab
    for array in arrays:
        store.add(array)
    assert all(torch.equal(s.voxels, torch.from_numpy(a)) for s, a in zip(store, arrays, strict=True))
    assert store[0].voxels.data_ptr() == store[0].voxels.data_ptr(), "views, not copies"
    assert store.nbytes == sum(a.nbytes for a in arrays)


def test_compressed_cts_take_little_more_than_half() -> None:
    ct, _ = chest_phantom(shape=(64, 192, 192), spacing=(2.0, 1.8, 1.8))
    store = VolumeStore(compressed=True)
    store.add(ct)
    assert store.nbytes < 0.65 * ct.voxels.nbytes


def test_paths_are_read_with_their_labels_turned_alike(tmp_path: Path) -> None:
    array = voxels()
    array.flat[:2] = -1024, 1000
    write(tmp_path / "ct.nii.gz", array, (2.0, 1.0, 0.5))
    image = sitk.GetImageFromArray((array > 500).astype(np.uint8))
    image.SetSpacing((0.5, 1.0, 2.0))
    # The same patient, written along other axes: x to the right, y to the front.
    flipped = sitk.Flip(image, (True, True, False))
    sitk.WriteImage(flipped, str(tmp_path / "label.mha"))
    store = VolumeStore().fill(
        [{"image": tmp_path / "ct.nii.gz", "label": tmp_path / "label.mha"}], progress=False
    )
    assert store[0].spacing == (2.0, 1.0, 0.5)
    assert store[0].name == str(tmp_path / "ct.nii.gz")
    assert store[0].label is not None
    assert np.array_equal(store[0].label.numpy(), array > 500)


def test_monai_dictionaries_and_torchio_subjects() -> None:
    monai = pytest.importorskip("monai.data")
    torchio = pytest.importorskip("torchio")
    array, label = voxels(), (voxels() > 0).astype(np.uint8)
    sample = {
        "image": monai.MetaTensor(array[None].astype(np.float32), affine=np.diag([3.0, 2.0, 1.0, 1.0])),
        "label": torch.from_numpy(label[None]),
        "box": torch.tensor([[1, 2, 3, 4, 5, 6]]),
    }
    # TorchIO's tensors run [C, W, H, D].
    subject = torchio.Subject(
        ct=torchio.ScalarImage(
            tensor=torch.from_numpy(array.transpose(2, 1, 0)[None].copy()), affine=np.diag([1, 2, 3, 1])
        ),
        nodules=torchio.LabelMap(tensor=torch.from_numpy(label.transpose(2, 1, 0)[None].copy())),
    )
    store = VolumeStore().fill([sample, subject], progress=False)
    for stored in store:
        assert stored.spacing == (3, 2, 1)
        assert np.array_equal(stored.voxels.numpy(), array)
        assert stored.label is not None
        assert np.array_equal(stored.label.numpy(), label)
    assert store[0].boxes.tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("image", "label", "boxes", "message"),
    [
        (np.zeros((4, 4), np.int16), None, None, r"image must be \[D, H, W\].* got \(4, 4\)"),
        (np.zeros((4, 4, 4), np.int16), np.zeros((4, 4, 3), np.uint8), None, r"\(4, 4, 3\).*\(4, 4, 4\)"),
        (np.zeros((4, 4, 4), np.int16), np.full((4, 4, 4), 256), None, "0 to 255, got 256"),
        (np.zeros((4, 4, 4), np.int16), None, [[0, 0, 0, 0, 1, 1]], "end after it begins"),
        (np.zeros((4, 4, 4), np.int16), None, [[0, 0, 0]], r"\[K, 6\], got shape \(1, 3\)"),
        (np.full((4, 4, 4), np.nan, np.float32), None, None, "nan"),
        (np.full((4, 4, 4), 1e6, np.float32), None, None, "1e\\+06 to 1e\\+06 do not fit"),
        (np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4), None, None, "lost in rounding"),
        (np.zeros((4, 4, 4), complex), None, None, "complex128"),
        ({"label": np.zeros((4, 4, 4))}, None, None, "no image, only label"),
    ],
    ids=["2d", "label_shape", "label_range", "box", "boxes_shape", "nan", "range", "unit", "complex", "none"],
)
def test_what_does_not_fit_is_named(image: Any, label: Any, boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^case-7: .*{message}"):
        VolumeStore().add(image, label=label, boxes=boxes, name="case-7")


def test_unreadable_files_stop_or_are_skipped_by_name(tmp_path: Path) -> None:
    good = [write(tmp_path / f"good{i}.nii.gz", voxels(i)) for i in range(2)]
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(good[0].read_bytes()[:5000])
    items = [good[0], damaged, tmp_path / "missing.mha", good[1]]
    with pytest.raises(InvalidScanError, match=r"damaged\.nii\.gz: .*(truncated|damaged|cut)"):
        VolumeStore().fill(items, progress=False)
    store = VolumeStore()
    with pytest.warns(UserWarning, match=r"(damaged|missing).* was skipped"):
        store.fill(items, on_error="skip", progress=False)
    assert [s.name for s in store] == [str(p) for p in good]
    assert [Path(name).name for name, _ in store.skipped] == ["damaged.nii.gz", "missing.mha"]
    assert store.skipped[1][1] == "no such file or folder"


def test_labels_that_are_none(tmp_path: Path) -> None:
    write(tmp_path / "ct.nii.gz", voxels())
    with pytest.raises(InvalidScanError, match="whole numbers 0 to 255"):
        read_labels(tmp_path / "ct.nii.gz")
    with pytest.raises(InvalidScanError, match=r"got '\.txt'"):
        read_labels("labels.txt")
    with pytest.raises(InvalidScanError, match="cannot be read"):
        read_labels(tmp_path / "missing.nii")


def test_order_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    arrays = [np.full((2, 2, 2), i, np.int16) for i in range(50)]
    store = VolumeStore().fill(arrays, threads=7)
    assert [int(s.voxels[0, 0, 0]) for s in store] == list(range(50))
    assert "50/50" in capsys.readouterr().err


@pytest.mark.parametrize("argument", [{"threads": 0}, {"on_error": "ignore"}], ids=str)
def test_arguments_of_fill(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(argument.values())))):
        VolumeStore().fill([], progress=False, **argument)


def _sums_and_mark(plain: VolumeStore, compressed: VolumeStore, results: Any) -> None:
    torch.set_num_threads(1)  # as DataLoader's workers: OpenMP's threads are not there after a fork
    results.put([int(s.voxels.sum()) for store in (plain, compressed) for s in store])
    plain[0].voxels[0, 0, 0] = 77


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_share_the_memory(method: str) -> None:
    plain, compressed = (VolumeStore(shared=True, compressed=c) for c in (False, True))
    for store in (plain, compressed):
        store.fill([voxels(i) for i in range(3)], progress=False)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=_sums_and_mark, args=(plain, compressed, results))
    process.start()
    sums = results.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    assert plain[0].voxels[0, 0, 0] == 77, "the other process wrote to a copy"
    assert sums == 2 * [int(voxels(i).sum()) for i in range(3)]


def test_a_private_store_says_that_it_is() -> None:
    with pytest.raises(TypeError, match="shared=True"):
        multiprocessing.reduction.ForkingPickler.dumps(VolumeStore())


def test_nothing_is_left_in_shared_memory() -> None:
    before = set(os.listdir("/dev/shm"))
    store = VolumeStore(shared=True)
    store.add(voxels())
    assert set(os.listdir("/dev/shm")) - before == set()
