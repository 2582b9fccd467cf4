"""Run folders made without a network: a real slide, its tissue, and nuclei found by a plain threshold."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsiseg.read import TissueMask
from wsiseg.schema import ERRORS, NUCLEI, SLIDES
from wsiseg.tables import arrow_schema, wkb_polygons

SLIDE = Path(__file__).resolve().parents[1] / "data" / "CMU-1-Small-Region.svs"
SIZE = (2220, 2967)
MPP = 0.499
DIGEST = "0123456789abcdef"

Make = Callable[..., Path]


def square_rings(cx: np.ndarray, cy: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * side / 2
    xy = (np.column_stack([cx, cy])[:, None, :] + corners).reshape(-1, 2)
    return xy, np.arange(len(cx) + 1, dtype=np.int64) * 5


def write_table(path: Path, cx: np.ndarray, cy: np.ndarray, side: float = 20.0) -> None:
    n = len(cx)
    xy, offsets = square_rings(cx, cy, side)
    half = side / 2
    filled: dict[str, Any] = {
        "nucleus_id": np.arange(n, dtype=np.int64),
        "geometry": wkb_polygons(xy, offsets),
        "bbox": [
            {"xmin": float(x - half), "ymin": float(y - half), "xmax": float(x + half), "ymax": float(y + half)}
            for x, y in zip(cx, cy, strict=True)
        ],
        "cx": cx,
        "cy": cy,
    }
    schema = arrow_schema(NUCLEI)
    columns = [pa.array(filled[f.name] if f.name in filled else np.zeros(n), f.type) for f in schema]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)


def slide_row(slide_id: str, **given: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(c.name for c in SLIDES)
    row |= {
        "slide_id": slide_id,
        "cohort": "",
        "status": "done",
        "path": str(SLIDE),
        "n_nuclei": 400,
        "nuclei_per_mm2": 4000.0,
        "tissue_mm2": 0.1,
        "area_mean_um2": 40.0,
        "area_std_um2": 12.0,
        "tiles_done": 1,
        "tiles_empty": 0,
        "tiles_failed": 0,
        "width_px": SIZE[0],
        "height_px": SIZE[1],
        "mpp": MPP,
        "mpp_source": "openslide",
        "scale": MPP / 0.25,
        "seconds_read": 1.0,
        "seconds_predict": 3.0,
        "table": f"nuclei/{slide_id}.parquet",
        "error": "",
    }
    return row | given


def write_run(root: Path, rows: list[dict[str, Any]], errors: list[dict[str, Any]] | None = None, digest: str = DIGEST) -> Path:
    for name in ("nuclei", "slides", "parts"):
        (root / name).mkdir(parents=True, exist_ok=True)
    record = {
        "wsiseg": "0.1",
        "digest": digest,
        "results": {"weights": "test", "mpp_model": 0.25, "read.tile_wpx": 4000},
        "created": "2026-11-21T01:00:00+00:00",
        "config": {"read": {"tile_wpx": 4000}},
        "host": {"name": "here"},
    }
    (root / "run.json").write_text(json.dumps(record))
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(SLIDES, nullable=True)), root / "slides.parquet")
    pq.write_table(pa.Table.from_pylist(errors or [], schema=arrow_schema(ERRORS, nullable=True)), root / "errors.parquet")
    return root


@pytest.fixture
def make_run(tmp_path: Path) -> Make:
    """Return a maker of run folders: slides by id, each of them the small real slide unless its row names another."""

    def make(ids: tuple[str, ...] = ("a", "b", "c"), name: str = "run", digest: str = DIGEST, **given: Any) -> Path:
        root = write_run(tmp_path / name, [slide_row(i, **given) for i in ids], digest=digest)
        mask = np.zeros((60, 45), np.uint8)
        mask[5:55, 5:40] = 1
        tissue = TissueMask(mask, SIZE[0] / 45, SIZE[1] / 60)
        random = np.random.default_rng(0)
        for slide_id in ids:
            (root / "slides" / f"{slide_id}.tissue.png").write_bytes(tissue.to_png())
            write_table(root / "nuclei" / f"{slide_id}.parquet", random.uniform(300, 1900, 400), random.uniform(300, 2600, 400))
        return root

    return make


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a headless Chromium driven by Selenium, or skip with the reason."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its chromedriver (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the selenium package (pip install 'wsiseg[dev]')")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tempfile.mkdtemp(prefix="wsiseg-chromium-")
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield page
    page.quit()
    shutil.rmtree(profile, ignore_errors=True)
