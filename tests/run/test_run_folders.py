"""Folders as people have them: slides are found wherever they lie, the rest is named, and no name costs a table."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from tests.run.conftest import run_here
from tests.run.dicoms import dicom_level, dicom_other
from wsiseg.errors import DuplicateSlideError, InputError, ManifestError
from wsiseg.read import open_slide
from wsiseg.read.files import plain_name, slide_files
from wsiseg.read.slide import content_digest, fingerprint
from wsiseg.results.listing import group_skipped, list_folder
from wsiseg.results.manifest import Found, find_slides

WHITE = np.full((300, 280, 3), 235, np.uint8)


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ids(found: Found) -> list[str]:
    return [s.slide_id for s in found.slides]


def reasons(found: Found) -> dict[str, int]:
    return {g.reason: g.n for g in group_skipped(found.skipped)}


# --- DICOM --------------------------------------------------------------------------------------------------------------------


def test_every_series_of_a_folder_is_a_slide(tmp_path: Path) -> None:
    a, b = generate_uid(), generate_uid()
    for series, name in ((a, "x"), (b, "y")):
        dicom_level(tmp_path / f"{name}_full.dcm", WHITE, series)
        dicom_level(tmp_path / f"{name}_half.dcm", WHITE[::2, ::2], series, mpp=1.0)
        dicom_level(tmp_path / f"{name}_0label.dcm", WHITE[:90, :90], series, flavor="LABEL")
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["x_full", "y_full"]
    assert not found.skipped
    slide = open_slide(found.slides[1].path)
    assert (slide.meta.width_px, slide.meta.height_px, len(slide.level_sizes_px)) == (280, 300, 2)
    slide.close()
    # what a shell makes of *.dcm: every file, still two slides
    by_files = find_slides(sorted(str(p) for p in tmp_path.glob("*.dcm")))
    assert ids(by_files) == ["x_full", "y_full"]
    assert len(by_files.skipped) == 4
    assert ids(find_slides([str(tmp_path / "*.dcm")])) == ["x_full", "y_full"]
    with pytest.raises(InputError, match="expected one DICOM series, got 2"):
        open_slide(tmp_path)


@pytest.mark.parametrize("name", ["SCAN.DCM", "IM0001", "1.2.826.0.1.3680043.8.498.7", "Scan.Dcm"])
def test_endings_of_dicom_files_do_not_matter(tmp_path: Path, name: str) -> None:
    series = tmp_path / "case7.dicom"
    series.mkdir()
    dicom_level(series / name, WHITE, generate_uid())
    found = find_slides([str(tmp_path)])
    assert [(s.slide_id, s.path) for s in found.slides] == [("case7", str(series))]
    slide = open_slide(series)
    assert (slide.meta.slide_id, slide.meta.vendor, slide.meta.width_px) == ("case7", "dicom", 280)
    slide.close()


def test_study_and_series_folders_are_searched(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        folder = tmp_path / patient / "study" / f"series_of_{patient}"
        folder.mkdir(parents=True)
        dicom_level(folder / "1.dcm", WHITE, generate_uid())
    dicom_level(tmp_path / "p2" / "study" / "loose.dcm", WHITE, generate_uid())
    assert ids(find_slides([str(tmp_path)])) == ["series_of_p1", "study", "series_of_p2"]


def test_a_stray_dicom_file_hides_no_other_slide(tmp_path: Path) -> None:
    for name in ("a.tif", "b.svs"):
        touch(tmp_path / name)
    dicom_level(tmp_path / "c.dcm", WHITE, generate_uid())
    assert ids(find_slides([str(tmp_path)])) == ["a", "b", "c"]


def test_dicom_that_is_no_slide_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.tif")
    dicom_other(tmp_path / "ct1.dcm")
    dicom_other(tmp_path / "ct2.dcm")
    dicom_level(tmp_path / "only_label.dcm", WHITE[:90, :90], generate_uid(), flavor="LABEL")
    touch(tmp_path / "README")
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["a"]
    assert reasons(found) == {
        "DICOM, but not a whole slide: CT Image Storage": 2,
        "DICOM label, overview or thumbnail without its slide": 1,
        "no ending, and not DICOM (give the path of a file to try it)": 1,
    }


def test_a_damaged_dicom_file_is_a_slide_that_fails(tmp_path: Path) -> None:
    dicom_level(tmp_path / "good.dcm", WHITE, generate_uid())
    touch(tmp_path / "cut.dcm", (tmp_path / "good.dcm").read_bytes()[:200])
    assert ids(find_slides([str(tmp_path)])) == ["cut", "good"]


def test_fingerprints_see_all_files_of_a_slide_and_no_others(tmp_path: Path) -> None:
    a, b = generate_uid(), generate_uid()
    full = dicom_level(tmp_path / "a1", WHITE, a)
    half = dicom_level(tmp_path / "a2", WHITE[::2, ::2], a, mpp=1.0)
    dicom_level(tmp_path / "b", WHITE, b)
    touch(tmp_path / "m" / "Data0001.dat")
    mirax = touch(tmp_path / "m.mrxs")
    vms = touch(tmp_path / "v.vms", b"[Virtual Microscope Specimen]\nImageFile=v.jpg\nNoLayers=1\n")
    touch(tmp_path / "v.jpg", b"pixels")
    assert [p.name for p in slide_files(full)] == ["a1", "a2"]
    assert fingerprint(full)[0] == full.stat().st_size + half.stat().st_size
    assert [p.name for p in slide_files(mirax)] == ["m.mrxs", "Data0001.dat"]
    assert [p.name for p in slide_files(vms)] == ["v.vms", "v.jpg"]
    before = [content_digest(p) for p in (full, mirax, vms)]
    touch(tmp_path / "m" / "Data0001.dat", b"y")
    touch(tmp_path / "v.jpg", b"PIXELS")
    dicom_level(half, WHITE[::2, ::2] - 40, a, mpp=1.0)
    assert all(x != y for x, y in zip(before, [content_digest(p) for p in (full, mirax, vms)], strict=True))


# --- folders ------------------------------------------------------------------------------------------------------------------


def test_a_folder_a_slide_as_downloads_have_it(tmp_path: Path) -> None:
    for k in (1, 2):
        touch(tmp_path / f"{k}e64-aaaa" / f"TCGA-0{k}-0001-01Z-00-DX1.UUID{k}.svs")
        touch(tmp_path / f"{k}e64-aaaa" / "logs" / f"TCGA-0{k}.svs.parcel")
    touch(tmp_path / "2e64-aaaa" / "annotations.txt")
    touch(tmp_path / "3e64-aaaa" / "TCGA-03.svs.partial")
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["TCGA-01-0001-01Z-00-DX1.UUID1", "TCGA-02-0001-01Z-00-DX1.UUID2"]
    assert reasons(found) == {"ending .parcel, no slide": 2, "ending .txt, no slide": 1, "unfinished download": 1}


def test_slides_of_one_name_in_several_folders_are_distinguished(tmp_path: Path) -> None:
    for name in ("p1/scan.svs", "p2/scan.svs", "p2/other.svs"):
        touch(tmp_path / name)
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["p1__scan", "other", "p2__scan"]
    assert "2 slides are called 'scan'" in found.notes[0]
    with pytest.raises(DuplicateSlideError, match=r"p1/scan.svs.*p2/scan.svs.*slide_id"):
        find_slides([str(tmp_path / "p1" / "scan.svs"), str(tmp_path / "p2" / "scan.svs")])
    apart = find_slides([str(tmp_path / "p1"), str(tmp_path / "p2")])
    assert ids(apart) == ["p1__scan.svs", "other", "p2__scan.svs"]
    touch(tmp_path / "p2" / "other.tif")
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["p1__scan", "p2__other.svs", "p2__other.tif", "p2__scan"]
    assert found.notes[1] == "2 slides are called 'other'; their ids are p2__other.svs, p2__other.tif"
    assert ids(find_slides([str(tmp_path / "*" / "*.svs")])) == ["p1__scan", "other", "p2__scan"]


def test_slides_of_one_name_in_one_folder_keep_their_endings(tmp_path: Path) -> None:
    """A scan and its DICOM in one folder: whatever other files there are, each file keeps one id at every listing."""
    touch(tmp_path / "case.svs")
    touch(tmp_path / "case.tif")
    (tmp_path / "case.dicom").mkdir()
    dicom_level(tmp_path / "case.dicom" / "a.dcm", WHITE, generate_uid())
    assert ids(find_slides([str(tmp_path)])) == ["case.dicom", "case.svs", "case.tif"]
    # a name that is what another one would be called
    touch(tmp_path / "p1" / "case.svs")
    touch(tmp_path / "p1__case.svs")
    touch(tmp_path / f"{tmp_path.name}__case.svs")
    both = [str(tmp_path), str(tmp_path / "p1")]
    found = find_slides(both)
    assert len(set(ids(found))) == len(found.slides) == 6
    assert ids(find_slides(both)) == ids(found)
    mixed = find_slides([str(tmp_path / "case.svs"), str(tmp_path)])
    assert [s.path for s in mixed.slides if s.slide_id == "case"] == [str(tmp_path / "case.svs")], "given by path: not renamed"


def test_ids_outlive_a_move_of_the_folder(tmp_path: Path) -> None:
    """Two names that become equal when made plain get different ids by a hash of the path below the folder."""
    given = []
    for place in ("here", "there"):
        for name in (b"Pr\xe4p.svs", b"Pr%E4p.svs"):
            touch(tmp_path / place / "slides" / os.fsdecode(name))
        given.append(ids(find_slides([str(tmp_path / place / "slides")])))
    assert given[0] == given[1]
    assert len(set(given[0])) == 2
    both = find_slides([str(tmp_path / place / "slides") for place in ("here", "there")])
    assert len(set(ids(both))) == 4


def test_slides_that_a_run_has_keep_their_ids(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "p1" / "scan.svs"), touch(tmp_path / "p2" / "scan.svs")
    found = find_slides([str(tmp_path)], known={str(one): "scan"})
    assert [(s.slide_id, s.path) for s in found.slides] == [("scan", str(one)), ("p2__scan", str(two))]
    assert ids(find_slides([str(two)], known={str(two): "p2__scan"})) == ["p2__scan"]
    rows = touch(tmp_path / "m.csv", f"path,slide_id\n{two},mine\n".encode())
    assert ids(find_slides([str(rows)], known={str(two): "p2__scan"})) == ["mine"]


def test_everything_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    touch(tmp_path / "ok.SVS")
    for name in ("a.xml", "b.xml", "c.vsi", "d.qptiff", ".hidden.svs", "._ok.SVS", "e.tif.crdownload", "@eaDir/ok.SVS/t.jpg"):
        touch(tmp_path / name)
    touch(tmp_path / "empty.svs", b"")
    (tmp_path / "lost.svs").symlink_to(tmp_path / "archive" / "lost.svs")
    (tmp_path / "round.svs").symlink_to(tmp_path / "round.svs")
    os.mkfifo(tmp_path / "pipe.tif")
    touch(tmp_path / "z.zarr" / "0" / "c" / "0.tif")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "loop").symlink_to(tmp_path / "up")
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["ok"]
    assert reasons(found) == {
        "hidden (its name begins with a dot)": 2,
        "folder of the operating system or storage": 1,
        "ending .xml, no slide": 2,
        "link to a folder that is listed already": 2,
        "ending .vsi, which cannot be read (convert to OME-TIFF or DICOM)": 1,
        "ending .qptiff, not searched for in folders (give the path of a file to try it)": 1,
        "unfinished download": 1,
        "zero bytes": 1,
        "broken link (its target does not exist)": 2,
        "not a regular file": 1,
        "Zarr folder (give its path if it is a slide)": 1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    touch(tmp_path / "b.svs").chmod(0)
    touch(tmp_path / "sub" / "c.svs")
    (tmp_path / "sub").chmod(0)
    found = find_slides([str(tmp_path)])
    (tmp_path / "sub").chmod(0o755)
    assert ids(found) == ["a"]
    assert reasons(found) == {"no permission to read": 2}


def test_links_to_slides_keep_their_names(tmp_path: Path) -> None:
    real = touch(tmp_path / "archive" / "0001.svs")
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "case_a.svs").symlink_to(real)
    (cohort / "case_b.svs").symlink_to(real)
    assert ids(find_slides([str(cohort)])) == ["case_a", "case_b"]


def test_parts_and_companions_of_slides_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path / "m.mrxs")
    touch(tmp_path / "m" / "Slidedat.ini")
    touch(tmp_path / "m" / "preview.jpg")
    touch(tmp_path / "orphan" / "Slidedat.ini")
    touch(tmp_path / "orphan" / "Data0000.jpg")
    touch(tmp_path / "v.vms", b"ImageFile=v_0.jpg\n")
    touch(tmp_path / "v_0.jpg")
    touch(tmp_path / "s.svs")
    for name in ("s.png", "s_thumb.jpg", "s-label.tif", "s_mask.png", "thumbnails/other.png", "t.png", "t_mask.png"):
        touch(tmp_path / name)
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["m", "s", "t", "v"]
    assert reasons(found) == {
        "data folder of a Mirax slide": 1,
        "data folder of a Mirax slide whose .mrxs file is missing": 1,
        "part of a Hamamatsu VMS slide": 1,
        "thumbnail, label, mask or overlay of a slide of that name": 5,
        "picture in a folder of thumbnails, masks or similar (give the path of a file to use it)": 1,
    }


def test_pictures_of_every_ending_that_opens_are_taken_but_not_beside_their_slide(tmp_path: Path) -> None:
    for name in ("a.bmp", "b.WEBP", "c.svs", "c.bmp", "d.tif", "d_anno.bmp", "e.webp", "e_label.webp", "f.jp2", "g.gif"):
        touch(tmp_path / name)
    found = find_slides([str(tmp_path)])
    assert ids(found) == ["a", "b", "c", "d", "e"]
    assert reasons(found) == {
        "thumbnail, label, mask or overlay of a slide of that name": 3,
        "ending .jp2, not searched for in folders (give the path of a file to try it)": 1,
        "ending .gif, not searched for in folders (give the path of a file to try it)": 1,
    }
    assert ids(find_slides([str(tmp_path / "*.jp2")])) == ["f"]


def test_thousands_of_files_become_a_few_lines(tmp_path: Path) -> None:
    for k in range(3000):
        (tmp_path / f"{k:04d}.json").touch()
    touch(tmp_path / "a.svs")
    (group,) = group_skipped(list_folder(tmp_path).skipped)
    assert (group.n, len(group.examples)) == (3000, 5)


def test_a_glob_follows_the_rules_of_a_folder_unless_it_names_an_ending(tmp_path: Path) -> None:
    for name in ("a.svs", "a.xml", "b.btf", "sub/c.svs"):
        touch(tmp_path / name)
    found = find_slides([str(tmp_path / "*")])
    assert ids(found) == ["a", "c"]
    assert ids(find_slides([str(tmp_path / "**" / "*.svs")])) == ["a", "c"]
    assert ids(find_slides([str(tmp_path / "**")])) == ["a", "c"]
    assert ids(find_slides([str(tmp_path / "*.btf")])) == ["b"]
    assert ids(find_slides([str(tmp_path / "a.svs"), str(tmp_path / "*.svs")])) == ["a"]


def test_no_slide_at_all_states_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path / "scan.vsi")
    with pytest.raises(InputError, match=r"have no slide(?s:.*)ending \.vsi.*: 1 \(.*scan\.vsi\)"):
        find_slides([str(tmp_path)])


# --- names --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Präparat 42", "Präparat 42"),
        ("e\u0301", "e\u0301"),
        (os.fsdecode(b"Pr\xe4parat"), "Pr%E4parat"),
        ("two\nlines\ttab", "two%0Alines%09tab"),
        ("back\\slash", "back%5Cslash"),
        ("x" * 200, "x" * 200),
    ],
)
def test_ids_are_names_unless_no_table_could_hold_them(name: str, expected: str) -> None:
    assert plain_name(name) == expected
    assert plain_name(expected) == expected


def test_long_names_are_cut_and_stay_apart() -> None:
    one, two = (plain_name("ä" * 120 + end) for end in ("1", "2"))
    assert one != two
    assert len(one.encode()) <= 200
    assert plain_name(one) == one


def test_odd_names_lose_no_table(crop_png: Path, tmp_path: Path) -> None:
    slides = tmp_path / os.fsdecode(b"Schnitte_\xfc")
    slides.mkdir()
    names = [b"good.png", b"Pr\xe4parat.png", b"two\nlines.png", b"y" * 251 + b".png", b"-dash.png", "ü🔬 'q\".png".encode()]
    for name in names:
        touch(slides / os.fsdecode(name), crop_png.read_bytes())
    touch(slides / os.fsdecode(b"br\xf6ken.png"), crop_png.read_bytes()[:4000])
    out = tmp_path / "run"
    done = run_here("segment", os.fsdecode(bytes(slides)), "--out", out, "--mpp", "0.499", "--workers", "1")
    assert done.exit_code == 1, done.output
    rows = {r["slide_id"]: r for r in pq.read_table(out / "slides.parquet").to_pylist()}
    assert len(rows) == 7
    assert {s: r["status"] for s, r in rows.items() if r["status"] != "done"} == {"br%F6ken": "failed"}
    assert len({r["n_nuclei"] for r in rows.values() if r["status"] == "done"}) == 1
    assert rows["Pr%E4parat"]["path"].endswith("Schnitte_%FC/Pr%E4parat.png")
    with (out / "slides.csv").open(encoding="utf-8", newline="") as stream:
        assert [r["slide_id"] for r in csv.DictReader(stream)] == list(rows)
    # the whole way: the record keeps the true name, so everything that needs pixels opens the slide again
    record = json.loads((out / "slides" / "Pr%E4parat.json").read_text())
    assert os.fsencode(record["file"]["path"]) == os.fsencode(slides) + b"/Pr\xe4parat.png"
    assert run_here("overlay", out, "Pr%E4parat", "-o", tmp_path / "o.png").exit_code == 0
    assert run_here("overlay", out, "--density", "-o", tmp_path / "d.png", "--", "-dash").exit_code == 0
    assert run_here("features", out, "--slide", "Pr%E4parat").exit_code == 0
    for command in (("status", out), ("errors", out), ("verify", out), ("export", out, "--to", "qupath", "-o", tmp_path / "e")):
        reported = run_here(*command)
        assert reported.exit_code == (1 if command[0] in ("errors", "status") and reported.exit_code else 0), (
            command,
            reported.output,
        )
    again = run_here("segment", os.fsdecode(bytes(slides)), "--out", out, "--mpp", "0.499", "--workers", "1")
    assert "6 done, 1 failed" in again.output


def test_run_pictures_among_slides_are_not_taken_for_slides(crop_png: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    touch(slides / "p1" / "case.png", crop_png.read_bytes())
    run = slides / "result"
    assert run_here("segment", slides, "--out", run, "--mpp", "0.499", "--workers", "1").exit_code == 0
    for more in ((), ("--density",)):
        assert run_here("overlay", run, "case", *more, "-o", slides / f"picture{len(more)}.png").exit_code == 0
    touch(slides / "case.tissue.png", (run / "slides" / "case.tissue.png").read_bytes())
    found = find_slides([str(slides)])
    assert ids(found) == ["case"]
    assert reasons(found) == {
        "run folder of wsiseg: its pictures are not slides": 1,
        "picture drawn by wsiseg": 2,
        "tissue mask of a wsiseg run": 1,
    }
    planned = run_here("plan", slides)
    assert "left out   picture drawn by wsiseg: 2" in planned.output
    again = run_here("segment", slides, "--out", run, "--mpp", "0.499", "--workers", "1")
    assert "left out   run folder of wsiseg: its pictures are not slides: 1" in again.output
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "left_out" and "tissue mask" in e["text"] for e in events) == 1
    # what comes later is told apart, and the slide that the run has keeps its id
    touch(slides / "p2" / "case.png", crop_png.read_bytes())
    more = run_here("segment", slides, "--out", run, "--mpp", "0.499", "--workers", "1")
    assert more.exit_code == 0
    assert "2 slides are called 'case'; their ids are case, p2__case" in more.output
    assert sorted(p.stem for p in (run / "nuclei").glob("*.parquet")) == ["case", "p2__case"]
    # a slide that the run holds under another id would be counted twice
    rows = touch(tmp_path / "m.csv", f"path,slide_id\n{slides / 'p1' / 'case.png'},other\n".encode())
    renamed = run_here("segment", rows, "--out", run, "--mpp", "0.499", "--workers", "1")
    assert renamed.exit_code == 2
    assert "is slide 'case' in" in renamed.output
    assert "'other' now" in renamed.output


# --- manifests ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for name in ("s/a.svs", "s/b, c.svs", "s/ü.svs", "masks/a.png"):
        touch(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "data",
    [
        b'path,mpp,tissue_mask\ns/a.svs,0.25,masks/a.png\n"s/b, c.svs",,\ns/\xc3\xbc.svs,,\n',
        b'\xef\xbb\xbfpath;mpp;tissue_mask\r\ns/a.svs;0,25;masks/a.png\r\n"s/b, c.svs";;\r\ns/\xc3\xbc.svs;;\r\n',
        b"sep=;\r\nPath;MPP;Mask\r\ns/a.svs;0.25;masks/a.png\r\ns/b, c.svs;;\r\ns/\xc3\xbc.svs;;\r\n",
        "path\tmpp\ttissue_mask\ns/a.svs\t0.25\tmasks/a.png\ns/b, c.svs\t\t\ns/ü.svs\t\t\n".encode("utf-16"),
    ],
    ids=["commas and quotes", "Excel: mark, semicolons, decimal comma", "Excel: sep line", "Excel: Unicode text"],
)
def test_tables_as_programs_save_them(cohort: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = touch(cohort / "elsewhere" / "x").parent
    monkeypatch.chdir(elsewhere)
    found = find_slides([str(touch(cohort / "m.csv", data))])
    assert [(s.slide_id, s.mpp) for s in found.slides] == [("a", 0.25), ("b, c", None), ("ü", None)]
    assert all(Path(s.path).is_file() for s in found.slides)
    assert found.slides[0].tissue_mask == str(cohort / "masks/a.png")
    assert not found.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,mpp\ns/a.svs,0.25\ns/b, c.svs,0.25\n", r"m\.csv, line 3: expected 2 fields .* got 3"),
        ("path,mpp\ns/a.svs,0.25\n\ns/ü.svs,fast\n", r"m\.csv, line 4 .*expected mpp in um/px, got 'fast'"),
        ("path,mpp\ns/a.svs,250\n", r"m\.csv, line 2 .*between 0\.01 and 100"),
        ("path\ns/a.svs\ns/a.tif\n", r"'a'.*m\.csv, line 2.*m\.csv, line 3"),
        ("path,slide_id\ns/a.svs,../a\n", r"m\.csv, line 2: expected a plain name"),
        ("path,wsi\ns/a.svs,s/ü.svs\n", r"m\.csv, line 2: two columns give path"),
        ("path\ns\n", r"m\.csv, line 2: expected one slide in folder .*s, got 3"),
    ],
    ids=["more fields", "mpp no number", "mpp impossible", "duplicate", "bad id", "two paths", "folder of many"],
)
def test_what_is_wrong_in_a_manifest_has_file_and_line(cohort: Path, text: str, message: str) -> None:
    (cohort / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises((ManifestError, DuplicateSlideError, InputError), match=message):
        find_slides([str(cohort / "m.csv")])


def test_a_manifest_in_another_encoding_is_refused_with_its_line(cohort: Path) -> None:
    with pytest.raises(ManifestError, match=r"m\.csv, line 3: is not UTF-8"):
        find_slides([str(touch(cohort / "m.csv", b"path\ns/a.svs\ns/\xfc.svs\n"))])


def test_missing_files_and_unknown_columns_are_noted(cohort: Path) -> None:
    (cohort / "m.csv").write_text("path,slide_id,tisue_mask\ns/a.svs,case 1,x\ns/lost.svs,,\n,case 3,\n")
    found = find_slides([str(cohort / "m.csv")])
    assert ids(found) == ["case 1", "lost"]
    text = "\n".join(found.notes)
    assert "does not exist: line 3 (s/lost.svs)" in text
    assert "rows without a path, left out: line 4" in text
    assert "unused columns: tisue_mask" in text


def test_a_path_that_means_two_files_is_refused(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cohort / "m.csv").write_text("path\ns/a.svs\n")
    touch(cohort / "other" / "s" / "a.svs", b"another")
    monkeypatch.chdir(cohort / "other")
    with pytest.raises(ManifestError, match=r"line 2: .*exists both in the manifest"):
        find_slides([str(cohort / "m.csv")])
    monkeypatch.chdir(cohort)
    assert ids(find_slides(["m.csv"])) == ["a"]


def test_a_missing_slide_of_a_manifest_fails_with_its_line(crop_png: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path,mpp\n{crop_png},0.499\nlost.svs,0.25\n")
    done = run_here("segment", tmp_path / "m.csv", "--out", tmp_path / "run", "--workers", "1", "--retries", "0")
    assert done.exit_code == 1
    (error,) = pq.read_table(tmp_path / "run" / "errors.parquet").to_pylist()
    assert error["slide_id"] == "lost"
    assert "m.csv, line 3" in error["error"]


# --- run folders --------------------------------------------------------------------------------------------------------------


def test_a_run_opens_its_own_slides_only(crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    touch(here / "case.png", crop_png.read_bytes())
    with Image.open(crop_png) as image:
        other = np.asarray(image.convert("RGB"))[::-1]
    there.mkdir()
    Image.fromarray(other).save(there / "case.png")  # another slide under the same name, where the user stands later
    monkeypatch.chdir(here)
    assert run_here("segment", "case.png", "--out", "run", "--mpp", "0.499", "--workers", "1").exit_code == 0
    run = here / "run"
    assert pq.read_table(run / "slides.parquet")["path"].to_pylist() == [str(here / "case.png")]
    monkeypatch.chdir(there)
    assert run_here("overlay", run, "case", "-o", tmp_path / "a.png").exit_code == 0
    assert run_here("features", run).exit_code == 0
    assert run_here("qc", "patches", run, "--per-slide", "2").exit_code == 0

    (here / "case.png").rename(tmp_path / "moved.png")
    for command in (("overlay", run, "case", "-o", tmp_path / "b.png"), ("features", run, "--overwrite")):
        gone = run_here(*command)
        assert gone.exit_code != 0
        assert "--path-map" in gone.output
    moved = ("--path-map", f"{here / 'case.png'}={tmp_path / 'moved.png'}")
    assert run_here("overlay", run, "case", "-o", tmp_path / "b.png", *moved).exit_code == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()

    (there / "case.png").rename(here / "case.png")
    for command in (
        ("overlay", run, "case", "-o", tmp_path / "c.png"),
        ("overlay", run, "case", "--density", "-o", tmp_path / "c.png"),
        ("features", run, "--overwrite"),
        ("qc", "patches", run, "--more", "2"),
    ):
        refused = run_here(*command)
        assert refused.exit_code != 0, command
        assert "is not the file that was segmented" in refused.output
    assert not (tmp_path / "c.png").exists()
    assert run_here("features", run, "--overwrite", *moved).exit_code == 0


def test_runs_without_a_digest_still_work_and_say_so(
    crop_png: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = touch(tmp_path / "case.png", crop_png.read_bytes())
    run = tmp_path / "run"
    assert run_here("segment", slide, "--out", run, "--mpp", "0.499", "--workers", "1").exit_code == 0
    path = run / "slides" / "case.json"
    record = json.loads(path.read_text())
    del record["file"]
    path.write_text(json.dumps(record))
    assert run_here("overlay", run, "case", "-o", tmp_path / "a.png").exit_code == 0
    assert "has no digest" in caplog.text
    # older still: what was typed, without its folder; a file of that name where the user stands is not it
    record["row"]["path"] = "case.png"
    path.write_text(json.dumps(record))
    (run / "inputs.jsonl").unlink()
    monkeypatch.chdir(tmp_path)
    refused = run_here("overlay", run, "case", "-o", tmp_path / "b.png")
    assert refused.exit_code == 2
    assert "--path-map case.png=" in refused.output
    assert run_here("overlay", run, "case", "-o", tmp_path / "b.png", "--path-map", f"case.png={slide}").exit_code == 0


# --- empty slides -------------------------------------------------------------------------------------------------------------


def test_empty_slides_stop_no_export(crop_png: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    touch(slides / "b_full.png", crop_png.read_bytes())
    Image.new("RGB", (300, 200), (255, 255, 255)).save(slides / "a_white.png")
    Image.new("RGB", (1, 1), (255, 255, 255)).save(slides / "c_dot.png")
    with Image.open(crop_png) as image:
        image.convert("RGB").crop((0, 200, 600, 214)).resize((3000, 14)).save(slides / "d_thin.png")
    touch(slides / "e_cut.png", crop_png.read_bytes()[:4000])
    run = tmp_path / "run"
    run_here("segment", slides, "--out", run, "--mpp", "0.499", "--workers", "1")
    empty = [r["slide_id"] for r in pq.read_table(run / "slides.parquet").to_pylist() if r["n_nuclei"] == 0 and r["table"]]
    assert {"a_white", "c_dot"} <= set(empty)
    for to, ending in (("spatialdata", "spatialdata.zarr"), ("geopackage", "gpkg")):
        done = run_here("export", run, "--to", to, "--out", tmp_path / to)
        assert done.exit_code == 0, done.output
        assert (tmp_path / to / f"b_full.{ending}").exists()
        assert f"{to} has no empty files: {len(empty)} ({', '.join(empty)})" in done.output
        assert "could not use the slide" in done.output
        assert "e_cut" in done.output
        assert not list((tmp_path / to).glob("a_white*"))
        one = run_here("export", run, "--to", to, "--slide", "a_white", "--out", tmp_path / "one")
        assert one.exit_code == 2
        assert "no nucleus" in one.output
    assert run_here("export", run, "--to", "qupath", "--out", tmp_path / "q").exit_code == 0
    assert len(list((tmp_path / "q").glob("*.geojson.gz"))) == 4
    for slide_id in ("a_white", "b_full", "c_dot", "d_thin"):
        for more in ((), ("--density",)):
            drawn = run_here("overlay", run, slide_id, *more, "-o", tmp_path / "p.png")
            assert drawn.exit_code == 0, drawn.output
            with Image.open(tmp_path / "p.png") as picture:
                assert min(picture.size) > 100


def test_a_damaged_table_stops_no_export_of_the_others(crop_png: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        touch(tmp_path / "s" / name, crop_png.read_bytes())
    run = tmp_path / "run"
    assert run_here("segment", tmp_path / "s", "--out", run, "--mpp", "0.499", "--workers", "1").exit_code == 0
    (run / "nuclei" / "a.parquet").write_bytes(b"PAR1 cut")
    done = run_here("export", run, "--to", "qupath", "--out", tmp_path / "q")
    assert done.exit_code == 1
    assert "a.parquet" in done.output
    assert (tmp_path / "q" / "b.geojson.gz").is_file()
