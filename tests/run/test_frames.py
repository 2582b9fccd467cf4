"""Coordinates from outside meet a slide: QuPath's frame, units, label images of a level, and what does not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from click.testing import CliRunner
from PIL import Image

from tests.export.tables import make_table
from wsiseg.cli import main
from wsiseg.config import RunConfig
from wsiseg.coordinates import Ground, check_fit, mpp_note, parse_frame
from wsiseg.errors import FormatError, InputError
from wsiseg.evaluation import evaluate_paths
from wsiseg.export.convert import ExportOptions, export_tables
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.read import ArraySlide, open_slide, tissue_from_file, tissue_px_in
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput, collect_slides
from wsiseg.run.job import prepare_slide
from wsiseg.types import Box, Stain

NM = 500  # of a px
AREA = Box(1200, 900, 1024, 768)  # what was scanned of a slide of 3000 x 2400 px
TISSUE = Box(64, 64, 640, 512)  # in that area


def scn(path: Path) -> Path:
    """A Leica SCN file (TIFF and XML): OpenSlide gives the whole slide and the place of the scanned area in it."""
    rng = np.random.default_rng(0)
    rgb = np.full((AREA.h, AREA.w, 3), 244, np.uint8)
    pink = np.clip(rng.normal((200, 120, 180), 12, (TISSUE.h, TISSUE.w, 3)), 0, 255).astype(np.uint8)
    rgb[TISSUE.y : TISSUE.y1, TISSUE.x : TISSUE.x1] = pink
    view = 'offsetX="{}" offsetY="{}" spacingZ="0"'
    image = """<image name="{n}" uuid="urn:uuid:{n}"><creationDate>2020-01-01T00:00:00Z</creationDate>
<device model="Leica SCN400;X" version="1"/><pixels sizeX="{w}" sizeY="{h}"><dimension sizeX="{w}" sizeY="{h}" r="0" ifd="{n}"/>
</pixels><view sizeX="{vw}" sizeY="{vh}" {view}/><scanSettings><objectiveSettings><objective>{x}</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings></image>"""
    whole = image.format(n=0, w=320, h=256, vw=3000 * NM, vh=2400 * NM, view=view.format(0, 0), x=0.6)
    scan = image.format(
        n=1, w=AREA.w, h=AREA.h, vw=AREA.w * NM, vh=AREA.h * NM, view=view.format(AREA.x * NM, AREA.y * NM), x=20
    )
    xml = f"""<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c"
uuid="urn:uuid:9" sizeX="{3000 * NM}" sizeY="{2400 * NM}"><barcode>00</barcode>{whole}{scan}</collection></scn>"""
    options = {"photometric": "rgb", "compression": "jpeg", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        out.write(np.full((256, 320, 3), 240, np.uint8), description=xml, **options)
        out.write(rgb, **options)
    return path


def geojson(path: Path, boxes: list[tuple[float, float, float, float]], kind: str = "detection") -> Path:
    properties = {"objectType": kind} if kind else {}
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(shapely.box(*b)), "properties": properties} for b in boxes
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scn(tmp_path_factory.mktemp("scn") / "slide.scn")


NUCLEI = [(80.0 + 30 * i, 90.0 + 20 * j, 92.0 + 30 * i, 101.0 + 20 * j) for i in range(18) for j in range(20)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (1, 0, 0)),
        ("slide", (1, 0, 0)),
        ("bounds", (1, 1200, 900)),
        ("bounds,px", (1, 1200, 900)),
        ("um", (2, 0, 0)),
        ("bounds, um", (2, 1200, 900)),
        ("mpp=2", (4, 0, 0)),
        ("slide,down=8", (8, 0, 0)),
        ("DOWN=8,Bounds", (8, 1200, 900)),
    ],
)
def test_one_grammar(text: str, expected: tuple[float, float, float]) -> None:
    assert parse_frame(text).on(Ground(3000, 2400, 0.5, 1200, 900)) == expected


@pytest.mark.parametrize("text", ["left", "um,px", "slide,bounds", "mpp=", "mpp=-1", "down=nan", "mpp=0.5,down=2", "1,2"])
def test_what_is_not_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="Expected a frame"):
        parse_frame(text)


def test_um_needs_to_know_the_slide() -> None:
    with pytest.raises(InputError, match="--mpp"):
        parse_frame("um").on(Ground(100, 100))


def test_points_outside_are_reported_with_numbers_and_a_frame_that_fits() -> None:
    ground = Ground(10_000, 8000, 0.25, downsamples=(1.0, 4.0, 16.0))
    xy = np.stack([np.linspace(100, 9900, 100), np.linspace(100, 7900, 100)], axis=1)
    assert check_fit(xy, ground, (1, 0, 0), "x") == []
    (reported,) = check_fit(xy * 1.25, ground, (1, 0, 0), "x")
    assert "20.0% of 100" in reported
    with pytest.raises(FormatError, match=r"100\.0% of 100 are outside the slide, x 0 to 10000"):
        check_fit(xy + 20_000, ground, (1, 0, 0), "x")
    (reported,) = check_fit(xy * 4, ground, (1, 0, 0), "x")  # px of a finer grid: no frame of this slide holds them
    assert "no frame" in reported
    (reported,) = check_fit(xy / 4, ground, (16, 0, 0), "x")
    assert "--frame slide, or with --frame slide,down=4" in reported
    assert mpp_note("x", 0.25, 0.2505) == []
    assert "--frame mpp=0.5" in mpp_note("x", 0.5, 0.25)[0]


@pytest.mark.parametrize("frame", ["", "auto", "bounds"])
def test_a_mask_of_qupath_counts_from_the_scanned_area(tmp_path: Path, slide: Path, frame: str) -> None:
    path = geojson(tmp_path / "t.geojson", [(0, 0, 512, 768)], "annotation")
    notes: list[str] = []
    tissue = tissue_from_file(path, open_slide(slide, mpp=0.5).meta, frame, notes.append)
    assert tissue_px_in(tissue, Box(1200, 900, 512, 768)) == pytest.approx(512 * 768, rel=0.05)
    assert tissue_px_in(tissue, Box(0, 0, 3000, 2400)) == pytest.approx(512 * 768, rel=0.05)
    assert any("(1200, 900) px are added" in n for n in notes) == (frame != "bounds")
    with pytest.raises(FormatError, match=r"outside.*--frame bounds"):
        tissue_from_file(path, open_slide(slide, mpp=0.5).meta, "slide")


def test_a_mask_in_micrometres_and_one_of_the_slide(tmp_path: Path, slide: Path) -> None:
    meta = open_slide(slide, mpp=0.5).meta
    um = geojson(tmp_path / "um.geojson", [(600, 450, 856, 834)], "")
    for path, frame in ((um, "um"), (geojson(tmp_path / "px.geojson", [(1200, 900, 1712, 1668)], ""), "auto")):
        tissue = tissue_from_file(path, meta, frame)
        assert tissue_px_in(tissue, Box(1200, 900, 512, 768)) == pytest.approx(512 * 768, rel=0.05)
    around = geojson(tmp_path / "all.geojson", [(-50, -50, 3050, 2450)], "")
    notes: list[str] = []
    assert tissue_from_file(around, meta, "auto", notes.append).mask.all()
    assert notes == []


def test_a_png_over_the_scanned_area(tmp_path: Path, slide: Path) -> None:
    meta = dataclasses.replace(open_slide(slide, mpp=0.5).meta, bounds_h=512)
    mask = np.zeros((64, 128), np.uint8)
    mask[:, :64] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(FormatError, match=r"aspect ratio.*--frame bounds"):
        tissue_from_file(tmp_path / "m.png", meta)
    tissue = tissue_from_file(tmp_path / "m.png", meta, "bounds")
    assert tissue_px_in(tissue, Box(1200, 900, 512, 512)) == 512 * 512 == tissue_px_in(tissue, Box(0, 0, 3000, 2400))


def test_a_mask_beside_the_tissue_is_reported_before_a_run_finds_nothing(tmp_path: Path, slide: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()

    def prepared(name: str, box: tuple[float, float, float, float]) -> tuple[str, ...]:
        mask = geojson(tmp_path / f"{name}.geojson", [box], "annotation")
        given = SlideInput(name, str(slide), mpp=0.5, tissue_mask=str(mask), frame="bounds")
        return prepare_slide(given, folder, RunConfig(), 0.25, Stain()).warnings

    assert prepared("on", (64, 64, 384, 576)) == ()
    assert any("its frame is right" in w for w in prepared("beside", (800, 64, 1000, 576)))


def test_the_frame_comes_from_option_or_manifest(tmp_path: Path, slide: Path) -> None:
    mask = geojson(tmp_path / "t.geojson", [(0, 0, 512, 768)])
    (one,) = collect_slides([str(slide)], tissue_mask=str(mask), frame="bounds,um")
    assert one.frame == "bounds,um"
    (tmp_path / "m.csv").write_text(f"path,tissue_mask,frame\n{slide},{mask},slide\n")
    assert collect_slides([str(tmp_path / "m.csv")], frame="bounds")[0].frame == "slide"
    with pytest.raises(InputError, match="Expected a frame"):
        collect_slides([str(slide)], tissue_mask=str(mask), frame="left")


def test_an_import_lands_on_its_slide(tmp_path: Path, slide: Path) -> None:
    path = geojson(tmp_path / "a.geojson", NUCLEI)
    (done,) = import_files([path], "qupath", tmp_path / "run", ImportOptions(slide=str(slide), mpp=0.5))
    table = pq.read_table(tmp_path / "run/nuclei/slide.parquet")
    assert (done.n_nuclei, min(table["cx"].to_pylist()), min(table["cy"].to_pylist())) == (360, 1286, 995.5)
    assert any("(1200, 900) px are added" in n for n in done.notes)
    with pytest.raises(FormatError, match=r"100\.0% of 360 are outside the scanned area.*--frame bounds"):
        import_files([path], "qupath", tmp_path / "no", ImportOptions(slide=str(slide), mpp=0.5, frame="slide"))
    assert not (tmp_path / "no/nuclei/slide.parquet").exists()
    plain = geojson(tmp_path / "b.geojson", [(a + 1200, b + 900, c + 1200, d + 900) for a, b, c, d in NUCLEI], "")
    (done,) = import_files([plain], "qupath", tmp_path / "plain", ImportOptions(slide=str(slide), mpp=0.5))
    assert not [n for n in done.notes if "added" in n]
    assert pq.read_table(tmp_path / "plain/nuclei/slide.parquet")["cx"].to_pylist() == table["cx"].to_pylist()
    um = geojson(tmp_path / "c.geojson", [tuple(v / 2 for v in box) for box in NUCLEI])
    (done,) = import_files([um], "qupath", tmp_path / "um", ImportOptions(slide=str(slide), mpp=0.5, frame="um"))
    assert pq.read_table(tmp_path / "um/nuclei/slide.parquet")["cx"].to_pylist() == table["cx"].to_pylist()
    off = geojson(tmp_path / "d.geojson", [(a % 200 + 760, b, a % 200 + 772, d) for a, b, c, d in NUCLEI])
    (done,) = import_files([off], "qupath", tmp_path / "off", ImportOptions(slide=str(slide), mpp=0.5))
    assert any("are on tissue" in n for n in done.notes)


def test_a_stated_scale_that_the_slide_has_not(tmp_path: Path, slide: Path) -> None:
    cell = {"contour": [[1290, 1000], [1300, 1000], [1300, 1010], [1290, 1010]], "type": 1}
    path = tmp_path / "cells.json"
    path.write_text(json.dumps({"wsi_metadata": {"base_mpp": 0.25}, "cells": [cell]}))
    (done,) = import_files([path], "cellvit", tmp_path / "run", ImportOptions(slide=str(slide), mpp=0.5))
    assert any("states 0.25 um/px, the slide has 0.5" in n and "--frame mpp=0.25" in n for n in done.notes)


def test_label_images_of_another_size(tmp_path: Path, slide: Path) -> None:
    whole = np.zeros((2400, 3000), np.uint16)
    whole[1000:1016, 1300:1320] = 4
    whole[1100:1116, 1300:1320] = 5
    options = ImportOptions(slide=str(slide), mpp=0.5)
    for name, image in (("whole", whole), ("quarter", whole[::4, ::4]), ("scanned", whole[900:1668, 1200:2224])):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    (done,) = import_files([tmp_path / "whole.tif"], "labels", tmp_path / "run", options)
    table = pq.read_table(tmp_path / "run/nuclei/slide.parquet")
    assert table["area_px"].to_pylist() == [320, 320]
    for name, frame in (("quarter", "slide,down=4"), ("scanned", "bounds,down=1")):
        with pytest.raises(FormatError, match=f"--frame {frame}"):
            import_files([tmp_path / f"{name}.tif"], "labels", tmp_path / name, options)
        fitting = dataclasses.replace(options, frame=frame)
        import_files([tmp_path / f"{name}.tif"], "labels", tmp_path / name, fitting)
        again = pq.read_table(tmp_path / name / "nuclei/slide.parquet")
        assert sorted(again["cy"].to_pylist()) == sorted(table["cy"].to_pylist())
        assert again["area_px"].to_pylist() == [320, 320]
    tifffile.imwrite(tmp_path / "odd.tif", whole[:1111, :1777])
    (done,) = import_files([tmp_path / "odd.tif"], "labels", tmp_path / "odd", options)
    assert any("1777 x 1111 px" in n and "3000 x 2400" in n for n in done.notes)


@pytest.mark.parametrize("origin", ["bounds", "slide"])
def test_a_table_equals_its_own_export(tmp_path: Path, origin: str) -> None:
    table = make_table(tmp_path, n=60, extent=1500, bounds=(700, 400))
    options = ExportOptions(frame=origin)  # type: ignore[arg-type]
    (out,) = export_tables(table, "qupath", tmp_path / "a.geojson", options)
    for pair in ((table, out.path), (out.path, table)):
        scored = evaluate_paths(*pair)
        assert scored.scores[0].pq == 1.0
        assert any("(700, 400) px are added" in n for n in scored.notes) == (origin == "bounds")
    wrong = evaluate_paths(out.path, table, frame="slide" if origin == "bounds" else "bounds")
    assert wrong.scores[0].pq < 0.1
    assert any("--frame" in n for n in wrong.notes)


def test_polygons_that_cannot_meet_are_refused_and_say_what_would_help(tmp_path: Path) -> None:
    table = make_table(tmp_path, n=60, extent=900, bounds=(7000, 4000))
    (out,) = export_tables(table, "qupath", tmp_path / "a.geojson", ExportOptions())
    with pytest.raises(FormatError, match=r"only 0\.0% .*They would overlap with --frame bounds"):
        evaluate_paths(out.path, table, frame="slide")
    np.save(tmp_path / "t.npy", np.eye(64, dtype=np.int32))
    far = geojson(tmp_path / "far.geojson", [(500, 500, 510, 510)])
    with pytest.raises(FormatError, match="64 x 64 px"):
        evaluate_paths(far, tmp_path / "t.npy")
    some = geojson(tmp_path / "some.geojson", [(5, 5, 9, 9), (500, 500, 510, 510)])
    assert any("50.0% of 2" in n for n in evaluate_paths(some, tmp_path / "t.npy").notes)
    window = evaluate_paths(far, tmp_path / "t.npy", origin=(490, 490))
    assert window.scores[0].n_pred == 1


def test_the_commands_have_the_option(tmp_path: Path, slide: Path) -> None:
    path = geojson(tmp_path / "a.geojson", NUCLEI)
    run = CliRunner().invoke(
        main, ["import", str(path), "--from", "qupath", "--slide", str(slide), "--mpp", "0.5", "--out", str(tmp_path / "run")]
    )
    assert run.exit_code == 0, run.output
    assert "px are added" in run.output
    table = str(tmp_path / "run/nuclei/slide.parquet")
    scored = CliRunner().invoke(main, ["evaluate", str(path), table, "--frame", "bounds"])
    assert scored.exit_code == 0, scored.output
    assert "1.000" in scored.output
    assert CliRunner().invoke(main, ["evaluate", str(path), table, "--frame", "left"]).exit_code != 0


def test_slides_without_a_scanned_area_read_qupath_as_before(tmp_path: Path) -> None:
    meta = ArraySlide(np.zeros((400, 800, 3), np.uint8), mpp=1.0, slide_id="s").meta
    path = geojson(tmp_path / "t.geojson", [(80, 80, 400, 240)], "annotation")
    notes: list[str] = []
    tissue = tissue_from_file(path, meta, "auto", notes.append)
    assert tissue_px_in(tissue, Box(80, 80, 320, 160)) == 320 * 160 == tissue_px_in(tissue, Box(0, 0, 800, 400))
    assert notes == []
