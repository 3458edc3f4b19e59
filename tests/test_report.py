"""Reports: what is in the three files, what must not be, and that they come whole or not at all."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("PIL")

from PIL import Image

from volnet.data.geometry import Geometry
from volnet.data.volume import CTVolume
from volnet.detection.finding import Finding
from volnet.report import RESEARCH_USE, OutputFolderError, check_output_folder, staged_folder, write_report
from volnet.report.findings import Redactor
from volnet.report.pictures import UprightVolume

FILES = ["findings.csv", "findings.json", "report.html"]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
DIRECTIONS = {
    "axial": IDENTITY,
    "feet first": (1, 0, 0, 0, 1, 0, 0, 0, -1),
    "mirrored": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "coronal slices": (1, 0, 0, 0, 0, 1, 0, -1, 0),
    "sagittal slices": (0, 0, 1, 1, 0, 0, 0, -1, 0),
    "oblique": (0.98, -0.199, 0, 0.199, 0.98, 0, 0, 0, 1),
}


def make_ct(
    direction: tuple[float, ...] = IDENTITY,
    shape: tuple[int, int, int] = (40, 60, 70),
    spacing: tuple[float, float, float] = (2.5, 0.75, 1.0),
    **fields: object,
) -> CTVolume:
    voxels = np.full(shape, -900, np.int16)
    geometry = Geometry(shape, spacing, (-30.0, -40.0, -200.0), direction)
    given = {"series_uid": "1.2.840.99.1", "source": "scan", "metadata": {"modality": "CT"}, **fields}
    return CTVolume(voxels, geometry, **given)


def plant(
    ct: CTVolume, start: tuple[int, int, int], stop: tuple[int, int, int], score: float = 0.9
) -> Finding:
    """A block of soft tissue that fills the finding's box to the voxel."""
    ct.voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 100
    center = tuple((a + b - 1) / 2 for a, b in zip(start, stop, strict=True))
    lps = tuple(float(c) for c in ct.geometry.voxel_to_lps(center))
    return Finding(center, lps, (*map(float, start), *map(float, stop)), 10.0, score)


def decode(png: str) -> np.ndarray:
    data = base64.b64decode(png, validate=True)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(data)))


class Page(HTMLParser):
    """Collects a page's images, boxes, addresses and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_json_holds_positions_geometry_and_versions(tmp_path: Path) -> None:
    import volnet

    ct = make_ct(notes=["a note"], metadata={"modality": "CT", "kvp": np.float64(120), "bad": float("nan")})
    findings = [plant(ct, (10, 20, 30), (14, 33, 40)), plant(ct, (30, 5, 5), (32, 12, 11), score=0.25)]
    write_report(
        tmp_path / "out", ct, findings, model_name="rpn", model_version="7", settings={"score_threshold": 0.1}
    )

    record = json.loads((tmp_path / "out/findings.json").read_text())
    assert (record["schema"], record["schema_version"]) == ("volnet.findings", "1.0")
    assert record["statement"] == RESEARCH_USE
    assert "not a medical device" in RESEARCH_USE
    assert "research use only" in RESEARCH_USE
    assert record["volnet_version"] == volnet.__version__
    assert record["model"] == {"name": "rpn", "version": "7"}
    assert record["settings"] == {"score_threshold": 0.1}
    assert record["series_uid"] == "1.2.840.99.1"
    assert record["notes"] == ["a note"]
    assert record["metadata"] == {"modality": "CT", "kvp": 120.0, "bad": None}
    assert record["geometry"] == {
        "shape_voxel": [40, 60, 70],
        "spacing_mm": [2.5, 0.75, 1.0],
        "origin_lps_mm": [-30.0, -40.0, -200.0],
        "direction": list(IDENTITY),
    }
    first, second = record["findings"]
    assert first["center_voxel"] == [11.5, 26.0, 34.5]
    # origin + index * spacing by hand, in (x, y, z)
    assert first["center_lps_mm"] == [-30 + 34.5 * 1.0, -40 + 26 * 0.75, -200 + 11.5 * 2.5]
    assert first["box_voxel"] == [10, 20, 30, 14, 33, 40]
    assert (first["number"], first["score"], first["diameter_mm"]) == (1, 0.9, 10.0)
    assert (second["number"], second["score"]) == (2, 0.25)


def test_csv_is_a_luna16_submission(tmp_path: Path) -> None:
    ct = make_ct()
    findings = [plant(ct, (10, 20, 30), (14, 33, 40)), plant(ct, (30, 5, 5), (32, 12, 11), score=0.25)]
    write_report(tmp_path / "out", ct, findings, model_name="rpn")

    with (tmp_path / "out/findings.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    assert [row[0] for row in rows[1:]] == ["1.2.840.99.1"] * 2
    np.testing.assert_allclose(
        [[float(c) for c in row[1:]] for row in rows[1:]],
        [[*finding.center_lps, finding.score] for finding in findings],
        atol=1e-3,
    )


def test_csv_columns_are_those_of_a_real_submission(shared_data: Path, tmp_path: Path) -> None:
    annotations = (shared_data / "luna16_froc/annotations.csv").read_text().splitlines()[0].split(",")
    write_report(tmp_path / "out", make_ct(), [], model_name="rpn")
    header = (tmp_path / "out/findings.csv").read_text().splitlines()[0].split(",")
    assert header[:4] == annotations[:4]


def test_html_is_self_contained_and_has_four_pictures_a_finding(tmp_path: Path) -> None:
    ct = make_ct(notes=["padding of -2000 HU"])
    findings = [plant(ct, (10, 20, 30), (14, 33, 40)), plant(ct, (30, 5, 5), (32, 12, 11), score=0.25)]
    write_report(tmp_path / "out", ct, findings, model_name="rpn")
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    page = Page(html)

    pictures = page.all("img")
    assert len(pictures) == 2 + 4 * len(findings)
    alternatives = [picture["alt"] or "" for picture in pictures]
    for number in (1, 2):
        for name in ("Axial", "Coronal", "Sagittal"):
            assert f"{name} picture of finding {number}" in alternatives
        assert f"Whole axial slice with finding {number}" in alternatives
    for picture in pictures:
        kind, _, png = (picture["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        assert decode(png).shape == (int(picture["height"] or 0), int(picture["width"] or 0))
    assert len([r for r in page.all("rect") if r["class"] == "box"]) == 4 * len(findings)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r'src="data:[^"]*"', "", html))
    for text in ("Not a medical device", RESEARCH_USE, "padding of -2000 HU", "0.90", "0.25", "10.0 mm"):
        assert text in page.text, text
    # Centres half way between two slices, 11.5 and 30.5 from 0, show the upper one.
    assert "Slice 13 of 40" in page.text
    assert "Slice 32 of 40" in page.text
    assert "4.5, -20.5, -171.2" in page.text


def test_html_escapes_what_comes_from_the_scan(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>'
    ct = make_ct(
        notes=[attack], metadata={attack: attack}, series_uid=attack, source=attack, identity={attack: attack}
    )
    write_report(tmp_path / "out", ct, [], model_name=attack, identify_patient=True)
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert Page(html).text.count(attack) >= 6


def test_without_findings_the_report_says_so(tmp_path: Path) -> None:
    write_report(tmp_path / "out", make_ct(), [], model_name="rpn")
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert "No findings" in page.text
    assert "does not mean that the scan is free of nodules" in page.text
    assert json.loads((tmp_path / "out/findings.json").read_text())["findings"] == []
    assert (tmp_path / "out/findings.csv").read_text() == "seriesuid,coordX,coordY,coordZ,probability\n"


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("field_mm", [40.0, None])
def test_box_lies_on_what_it_marks(plane: str, direction: tuple[float, ...], field_mm: float | None) -> None:
    ct = make_ct(direction)
    finding = plant(ct, (10, 20, 30), (14, 33, 40))
    picture = UprightVolume(ct).picture(
        plane, finding.center_voxel, finding.box_voxel, field_mm=field_mm, pixel_mm=0.25
    )
    image = decode(picture.png)
    assert image.shape == (picture.pixels[1], picture.pixels[0])
    # Square pixels: as many a millimetre across as down.
    np.testing.assert_allclose(np.array(picture.pixels) * 0.25, picture.size_mm, atol=0.13)
    rows, columns = np.nonzero(image > 160)
    x, y, width, height = picture.box_mm
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 0.25
    # Half a voxel of the widest spacing is what interpolation may move an edge by.
    np.testing.assert_allclose(seen, [x, y, x + width, y + height], atol=0.7)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize(
    ("plane", "toward", "side"),
    [
        ("axial", (1, 0, 0), "right"),
        ("axial", (0, 1, 0), "bottom"),
        ("coronal", (1, 0, 0), "right"),
        ("coronal", (0, 0, 1), "top"),
        ("sagittal", (0, 1, 0), "right"),
        ("sagittal", (0, 0, 1), "top"),
    ],
)
def test_pictures_hang_as_radiologists_hang_them(
    plane: str, toward: tuple[int, int, int], side: str, direction: tuple[float, ...]
) -> None:
    ct = make_ct(direction, shape=(50, 50, 50), spacing=(1.0, 1.0, 1.0))
    center = (25.0, 25.0, 25.0)
    lps = ct.geometry.voxel_to_lps(center) + 15.0 * np.array(toward)  # +x is the patient's left
    d, h, w = np.rint(ct.geometry.lps_to_voxel(lps)).astype(int)
    ct.voxels[d - 4 : d + 5, h - 4 : h + 5, w - 4 : w + 5] = 100
    picture = UprightVolume(ct).picture(plane, center, field_mm=48.0, pixel_mm=1.0)
    rows, columns = np.nonzero(decode(picture.png) > 160)
    x, y = columns.mean() - 23.5, rows.mean() - 23.5
    expected = {"right": (15, 0), "bottom": (0, 15), "top": (0, -15)}[side]
    # The oblique scan is shown along its own axes, 11 degrees off.
    np.testing.assert_allclose((x, y), expected, atol=4.0)
    left, right, top, bottom = picture.sides
    letters = {(1, 0, 0): "L", (0, 1, 0): "P", (0, 0, 1): "S"}
    assert {"left": left, "right": right, "top": top, "bottom": bottom}[side] == letters[toward]


def test_projection_shows_the_scan_from_the_front() -> None:
    ct = make_ct()
    ct.voxels[35:38, 10:50, 60:65] = 400  # near the head, on the patient's left
    picture = UprightVolume(ct).projection("coronal", pixel_mm=1.0)
    image = decode(picture.png)
    assert picture.size_mm == (70.0, 100.0)
    rows, columns = np.nonzero(image > 200)
    assert columns.mean() > 50
    assert rows.mean() < 20


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (200, 3, 3)])
def test_finding_at_the_edge_of_a_small_scan_has_pictures(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    ct = make_ct(shape=shape)
    finding = Finding((0.0, 0.0, 0.0), (-30.0, -40.0, -200.0), (-1.0, -2.0, -2.0, 1.0, 2.0, 2.0), 90.0, 0.5)
    write_report(tmp_path / "out", ct, [finding], model_name="rpn")
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 6


def test_a_large_finding_is_shown_whole(tmp_path: Path) -> None:
    ct = make_ct()
    finding = plant(ct, (2, 4, 5), (38, 56, 65))  # 90 mm tall, of a nominal diameter of 10 mm
    write_report(tmp_path / "out", ct, [finding], model_name="rpn")
    page = Page((tmp_path / "out/report.html").read_text(encoding="utf-8"))
    boxes = [r for r in page.all("rect") if r["class"] == "box"][:3]
    for box in boxes:
        assert all(float(box[side] or 0) > 0 for side in ("x", "y"))
    assert float(boxes[1]["height"] or 0) == pytest.approx(90.0)
    assert "Coronal, 135 mm" in page.text


SECRETS = {
    "patient_name": "Quixotel^Zebedee^M",
    "patient_id": "PID-778899",
    "birth_date": "19431224",
    "accession_number": "ACC4711",
    "study_uid": "1.2.3.987654321",
    "study_description": "CHEST",
}
FORMS = ["quixotel", "zebedee", "pid-778899", "19431224", "1943-12-24", "acc4711", "1.2.3.987654321"]


def scan_of_a_known_patient() -> CTVolume:
    return make_ct(
        identity=dict(SECRETS),
        source="/data/Quixotel^Zebedee/PID-778899",
        series_uid="zebedee_quixotel_19431224",
        notes=[
            "other series: QUIXOTEL_scout.dcm",
            "born 1943-12-24",
            "order (ACC4711)",
            "study 1.2.3.987654321",
        ],
        metadata={"modality": "CT", "body_part": "CHEST", "comment": ["for Zebedee", {"Quixotel": 1}]},
    )


def test_identity_is_in_no_byte_of_any_file(tmp_path: Path) -> None:
    ct = scan_of_a_known_patient()
    finding = plant(ct, (10, 20, 30), (14, 33, 40))
    write_report(tmp_path / "out", ct, [finding], model_name="rpn")
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    for name in FILES:
        content = (tmp_path / "out" / name).read_bytes().lower()
        for form in FORMS:
            assert form.encode() not in content, (name, form)
    record = json.loads((tmp_path / "out/findings.json").read_text())
    assert "patient" not in record
    assert "source" not in record
    assert record["metadata"]["body_part"] == "CHEST"
    assert record["notes"][0] == "other series: [withheld]_scout.dcm"


def test_identity_is_there_when_asked_for(tmp_path: Path) -> None:
    ct = scan_of_a_known_patient()
    write_report(tmp_path / "out", ct, [], model_name="rpn", identify_patient=True)
    record = json.loads((tmp_path / "out/findings.json").read_text())
    assert record["patient"] == SECRETS
    assert record["source"] == ct.source
    assert record["series_uid"] == ct.series_uid
    text = Page((tmp_path / "out/report.html").read_text(encoding="utf-8")).text
    assert "Quixotel^Zebedee^M" in text
    assert "19431224" in text


def test_redaction_leaves_the_scanner(tmp_path: Path) -> None:
    metadata = {"manufacturer": "SIEMENS", "kernel": "LUNG", "station": "Siemens 3"}
    ct = make_ct(identity={"patient_name": "Siemens^Lung"}, metadata=metadata)
    write_report(tmp_path / "out", ct, [], model_name="rpn")
    written = json.loads((tmp_path / "out/findings.json").read_text())["metadata"]
    assert written == {**metadata, "station": "[withheld] 3"}


def test_redaction_leaves_uids_and_parts_of_words() -> None:
    redactor = Redactor({"patient_id": "77", "patient_name": "Lung^Al", "sex": "M"})
    assert redactor.uid("1.2.77.3") == "1.2.77.3"
    assert redactor.uid("scan-77") == "scan-[withheld]"
    assert redactor.text("Lungs: 1779 slices, M, also lung") == "Lungs: 1779 slices, M, also [withheld]"


def entries(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def fill(
    out: Path, files: dict[str, str], *, overwrite: bool = False, error: BaseException | None = None
) -> None:
    """Write `files` by way of a staged folder, and then raise `error`."""
    with staged_folder(out, overwrite=overwrite) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("target", ["out", "new/deeper/out"])
def test_a_failing_block_leaves_nothing(tmp_path: Path, target: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fill(tmp_path / target, {"half": "written"}, error=error())
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("volnet.report.write.write_html", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "out", make_ct(), [], model_name="rpn")
    assert list(tmp_path.iterdir()) == []


def test_nothing_shows_until_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert entries(tmp_path) == {"out/a": "1"}


def test_a_filled_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")
    with pytest.raises(OutputFolderError, match=re.escape(str(tmp_path)) + ".*not empty"):
        write_report(tmp_path, make_ct(), [], model_name="rpn")
    assert entries(tmp_path) == {"kept": "old"}


def test_overwriting_replaces_same_names_and_keeps_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "ct").mkdir(parents=True)
    (out / "ct/old.dcm").write_text("old")
    (out / "findings.json").write_text("old")
    (out / "mine.txt").write_text("mine")
    fill(out, {"ct/new.dcm": "new", "findings.json": "new"}, overwrite=True)
    assert entries(tmp_path) == {"out/ct/new.dcm": "new", "out/findings.json": "new", "out/mine.txt": "mine"}
    assert os.listdir(tmp_path) == ["out"]
    assert sorted(os.listdir(out)) == ["ct", "findings.json", "mine.txt"]


def test_overwriting_that_fails_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "findings.json").write_text("old")
    with pytest.raises(RuntimeError):
        fill(out, {"findings.json": "new"}, overwrite=True, error=RuntimeError())
    assert entries(tmp_path) == {"out/findings.json": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_rename_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b"):
        (out / name).write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "b" and Path(target).parent == out and self.read_text() == "new":
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk gone"):
        fill(out, {"a": "new", "b": "new"}, overwrite=True)
    assert entries(tmp_path) == {"out/a": "old", "out/b": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_a_link_and_a_mount_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("empty", "linked", "mount"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "empty").chmod(0o750)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    inode = (tmp_path / "mount").stat().st_ino
    for name in ("empty", "link", "mount"):
        fill(tmp_path / name, {"a": "1"})
    assert entries(tmp_path) == {"empty/a": "1", "linked/a": "1", "mount/a": "1"}
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "mount").stat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == ["empty", "link", "linked", "mount"]


def test_unusable_output_folders_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        with pytest.raises(OutputFolderError, match=re.escape(str(out))):
            check_output_folder(out)
    check_output_folder(tmp_path / "not" / "there" / "yet")
    assert os.listdir(tmp_path) == ["file"]
