"""The functions for Python: they give what a run gives; their examples and the notebook run."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import wsiseg
from wsiseg.errors import FormatError, InputError

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
DEMO = ROOT / "wsiseg" / "demo" / "atlas_metaplasia_HE_crop.svs"


@pytest.fixture(scope="module")
def rgb():
    return wsiseg.open_slide(DEMO).read_level(0, 1000, 1000, 500, 400)


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_segment_image_gives_the_table_of_a_run(tmp_path, rgb, mpp):
    picture = tmp_path / "picture.png"
    Image.fromarray(rgb).save(picture)
    command = [sys.executable, "-m", "wsiseg", "segment", str(picture), "--mpp", str(mpp), "--out", str(tmp_path / "run")]
    subprocess.run(
        [*command, "--workers", "1"], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300
    )
    expected = pq.read_table(tmp_path / "run" / "nuclei" / "picture.parquet")
    found = wsiseg.segment_image(rgb, mpp)
    assert found.num_rows > 20
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        assert found[name].combine_chunks().equals(expected[name].combine_chunks()), name
    slides = wsiseg.read_slides(tmp_path / "run")
    assert slides["n_nuclei"].to_pylist() == [found.num_rows]


def test_label_image_undoes_tracing(rgb):
    nuclei = wsiseg.segment_image(rgb, 0.25)
    labels = wsiseg.label_image(nuclei, rgb.shape[:2])
    seen, area = np.unique(labels[labels > 0], return_counts=True)
    # a nucleus in the filled hole of another hides pixels of it; no other may differ from its area
    assert (area == nuclei["area_px"].to_numpy()[seen - 1]).mean() > 0.98
    part = wsiseg.label_image(nuclei, (50, 60), origin=(100, 200))
    np.testing.assert_array_equal(part, labels[200:250, 100:160])


def test_what_is_no_picture_is_refused(rgb):
    for wrong in (rgb[..., 0], rgb.astype(np.float32), rgb[:0]):
        with pytest.raises(InputError, match="uint8"):
            wsiseg.segment_image(wrong, 0.25)
    with pytest.raises(InputError, match="mpp"):
        wsiseg.segment_image(rgb, float("nan"))


def test_evaluate_takes_arrays_or_paths(tmp_path):
    truth = np.kron(np.arange(4).reshape(2, 2), np.ones((8, 8), np.int32))
    assert wsiseg.evaluate(truth, truth).pq == 1
    np.save(tmp_path / "a.npy", truth)
    assert wsiseg.evaluate(tmp_path / "a.npy", tmp_path / "a.npy").scores[0].pq == 1
    with pytest.raises(InputError, match="one of each"):
        wsiseg.evaluate(truth, tmp_path / "a.npy")
    with pytest.raises(FormatError, match="shape"):
        wsiseg.evaluate(truth, truth[:4])


def test_a_run_without_its_table_states_it(tmp_path):
    with pytest.raises(InputError, match="wsiseg status"):
        wsiseg.read_slides(tmp_path)


def test_names_are_listed_and_typed():
    assert set(dir(wsiseg)) >= {
        "segment",
        "segment_image",
        "open_slide",
        "read_nuclei",
        "read_slides",
        "evaluate",
        "label_image",
    }
    assert (ROOT / "wsiseg" / "py.typed").is_file()
    with pytest.raises(AttributeError, match="nothing"):
        _ = wsiseg.nothing


@pytest.mark.parametrize("name", ["wsiseg.library", "wsiseg.export.query"])
def test_examples_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_function_has_an_example():
    finder = doctest.DocTestFinder()
    without = [n for n in wsiseg.__all__ if n not in ("__version__", "open_slide", "read_nuclei")
               and not any(t.examples for t in finder.find(getattr(wsiseg, n), n))]  # fmt: skip
    assert not without


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs(path, tmp_path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    script = tmp_path / "notebook.py"
    script.write_text(f"import matplotlib; matplotlib.use('Agg')\n{source}\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"tutorial": "PQ", "questions": "of the points lie in nuclei"}[path.stem] in done.stdout


def test_reference_pages_are_what_the_program_states():
    command = [sys.executable, str(ROOT / "scripts" / "make_reference.py"), "--check"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stderr}\nRun: python scripts/make_reference.py"
