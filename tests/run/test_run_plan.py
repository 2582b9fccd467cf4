"""The estimates of a plan contain the results of the run in their intervals, on real, varying tissue."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fetch.gdc_server import gdc_server
from tests.run.conftest import SLIDE, run_here
from wsiseg.run.doctor import demo_slide
from wsiseg.run.plan import Estimate


def test_an_interval_contains_the_mean_at_its_stated_rate() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    made = [Estimate.of(list(rng.normal(100, 20, 8))) for _ in range(2000)]
    assert 0.87 < np.mean([e.low <= 100 <= e.high for e in made]) < 0.93
    one = Estimate.of([3.0])
    assert (one.low, one.mean, one.high) == (1.0, 3.0, 9.0)


@pytest.mark.parametrize(("slide", "widest"), [(SLIDE, 4), (demo_slide(), 3)], ids=["density varies by as much", "even"])
def test_nuclei_and_bytes_of_a_run_are_in_the_interval_of_its_plan(slide: Path, widest: float, tmp_path: Path) -> None:
    notes = run_here("plan", slide)
    assert notes.exit_code == 0, notes.output
    low, high = (
        float(v.replace(",", "")) for v in re.search(r"worker, \S+ \(([\d,]+) to ([\d,]+)\) +nuclei", notes.output).groups()
    )
    assert "Measured here on 8 windows" in notes.output
    assert run_here("segment", slide, "--out", tmp_path / "out").exit_code == 0
    (row,) = pq.read_table(tmp_path / "out/slides.parquet").to_pylist()
    density = row["n_nuclei"] / row["tissue_mm2"]
    assert low * 0.9 < density < high * 1.1
    assert high < widest * low


@pytest.mark.parametrize(("stage_gb", "code"), [("1", 0), ("0.000001", 1)])
def test_slides_at_addresses_are_listed_and_not_fetched(
    stage_gb: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gdc_server(tmp_path / "server") as server:
        monkeypatch.setenv("WSISEG_GDC_API", server.address)
        manifest = tmp_path / "m.txt"
        manifest.write_text(f"id\tfilename\tmd5\tsize\tstate\n1\ta.svs\t{'0' * 32}\t2500000\tlive\n")
        address = server.put("b.svs", bytes(1_500_000))
        notes = run_here("plan", manifest, address, "--stage", tmp_path / "stage", "--stage-gb", stage_gb)
        assert notes.exit_code == code, notes.output
        assert "2 slides to fetch, 0.004 GB" in notes.output
        assert ("do not fit" in notes.output) == bool(code)
        assert server.sent("b.svs") <= 1
        assert not (tmp_path / "stage").exists()
