"""A run of two slides with synthetic nuclei, a tissue mask, and regions drawn on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.export.tables import make_table
from wsiseg.read import TissueMask


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables of 2,000 nuclei at working scale 1, and of 300 at scale 2."""
    folders = {n: tmp_path_factory.mktemp(n) for n in ("one", "two")}
    return {
        "A": make_table(folders["one"], n=2000, bounds=(300, 200)),
        "B": make_table(folders["two"], n=300, mpp=0.5, scale=2.0, extent=3000),
    }


@pytest.fixture
def run(made: dict[str, Path], tmp_path: Path) -> Path:
    """``RUN`` with the slides A (12,000 px, scanned area from (300, 200)) and B (6,000 px); both have a mask."""
    root = tmp_path / "run"
    for folder in ("nuclei", "slides"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(4)
    for slide_id, side in (("A", 12000), ("B", 6000)):
        shutil.copyfile(made[slide_id], root / f"nuclei/{slide_id}.parquet")
        mask = (rng.random((150, 150)) < 0.9).astype(np.uint8)
        mask[:8] = 0
        mask[:, :8] = 0
        (root / f"slides/{slide_id}.tissue.png").write_bytes(TissueMask(mask, side / 150, side / 150).to_png())
        (root / f"slides/{slide_id}.json").write_text(json.dumps({"row": {"cohort": "LUAD", "status": "done"}}))
    return root
