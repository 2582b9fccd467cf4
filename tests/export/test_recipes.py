"""The recipes do what they say: every block of RECIPES.md is run, as it stands, in a folder with the files that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import zarr
from click.testing import CliRunner

from tests.export.test_dicom_ann import level
from tests.export.test_features import blobs, make_run
from tests.run.conftest import SLIDE
from tests.run.dicoms import dicom_level
from wsiseg.cli import main
from wsiseg.export import query, write_geojson, write_quip
from wsiseg.results.folder import RunFolder
from wsiseg.results.maps import make_maps
from wsiseg.tables import open_nuclei

RECIPES = Path(__file__).resolve().parents[2] / "wsiseg/export/RECIPES.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", RECIPES.read_text(encoding="utf-8"), re.DOTALL)


def dicom_series(folder: Path) -> None:
    """Write the slide as DICOM, white, with the headers of patient and specimen that annotations repeat."""
    folder.mkdir()
    path = dicom_level(folder / "level0.dcm", np.full((2967, 2220, 3), 255, np.uint8), "1.2.3", 0.499)
    whole, header = pydicom.dcmread(path), level(folder.parent / "header/level.dcm", 2220, 2967, mpp=0.499)
    for element in header:
        if element.tag not in whole:
            whole.add(element)
    whole.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    labels = blobs(6, 120)
    for name, slide_id, cohort in (("RUN", "SLIDE", "LUAD"), ("RUN_LUAD", "S1", "LUAD"), ("RUN_BRCA", "S2", "BRCA")):
        run = make_run(root / name, labels, 1.0)
        (run / f"nuclei/{SLIDE.stem}.parquet").rename(run / f"nuclei/{slide_id}.parquet")
        record = json.loads((run / f"slides/{SLIDE.stem}.json").read_text())
        record["row"] |= {"cohort": cohort, "n_nuclei": int(labels.max()), "width_px": 2220, "height_px": 2967}
        (run / f"slides/{SLIDE.stem}.json").unlink()
        (run / f"slides/{slide_id}.json").write_text(json.dumps(record))
        pq.write_table(pa.table({"slide_id": [slide_id], "cohort": [cohort], "mpp": [0.499]}), run / "slides.parquet")
    run = root / "RUN"
    (run / "qc").mkdir()
    pq.write_table(pa.table({"slide_id": ["SLIDE"], "grade": ["Good"]}), run / "qc/grades.parquet")
    make_maps(RunFolder(run), "SLIDE")
    source = open_nuclei(run / "nuclei/SLIDE.parquet")
    (root / "SLIDE.svs").symlink_to(SLIDE)
    dicom_series(root / "SERIES")
    write_geojson(source, root / "a.geojson")
    corners = [[300, 300], [1500, 300], [1500, 1500], [300, 1500], [300, 300]]
    region = {"type": "Polygon", "coordinates": [corners]}
    (root / "ANNOTATIONS").mkdir()
    for path in (root / "regions.geojson", root / "ANNOTATIONS/SLIDE.geojson"):
        path.write_text(json.dumps({"type": "Feature", "geometry": region, "properties": {"class": "Tumor"}}))
    xy = [[x * 0.2125, y * 0.2125] for x in range(300, 1500, 40) for y in range(300, 1500, 40)]
    columns = {"x_location": [p[0] for p in xy], "y_location": [p[1] for p in xy], "feature_name": ["CD3E"] * len(xy)}
    pq.write_table(pa.table({"transcript_id": range(len(xy)), **columns}), root / "transcripts.parquet")
    (root / "he_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    (root / "cells.csv").write_text("x_um,y_um\n300,300\n400,350\n")
    write_quip(source, root / "TCIA/luad_polygon").path.rename(root / "TCIA/luad_polygon/SLIDE.svs")
    store = zarr.storage.ZipStore(root / "pinst_pp.zip", mode="w")
    zarr.create_array(store, data=labels)
    store.close()
    (root / "class_inst.json").write_text(json.dumps({str(k): [1, [0, 0]] for k in np.unique(labels)[1:].tolist()}))
    return root


def test_every_recipe_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    kinds = []
    for kind, text in BLOCKS:
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, str(RECIPES), "exec"), {})
        elif kind == "sql":
            table, units = query("RUN", text)
            assert table.num_rows > 0
            assert units["area_um2"] == "um^2"
        else:
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                assert words[0] == "wsiseg", line
                done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
                assert done.exit_code == 0, f"{line}\n{done.output}"
    assert set(kinds) == {"bash", "python", "sql"}
    assert (workplace / "density.png").stat().st_size > 10_000
    answer, _ = query("IMPORTED", "select slide_id, count(*) n from nuclei group by all order by slide_id")
    assert answer["slide_id"].to_pylist() == ["A", "B", "SLIDE", "level0"]
