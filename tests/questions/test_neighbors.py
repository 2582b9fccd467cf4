"""Neighbors: against all pairs, empty circumcircles, sums in plain loops; pieces, resume and bytes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command import call
from wsiseg.errors import InputError
from wsiseg.questions import NeighborOptions, graphs
from wsiseg.questions.graphs import delaunay_edges, iter_pairs


def all_pairs(xy: np.ndarray, radius: float) -> list[tuple[int, int]]:
    dx, dy = (xy[:, None, k] - xy[None, :, k] for k in (0, 1))
    near = (dx * dx + dy * dy <= radius * radius) & ~np.eye(len(xy), dtype=bool)
    return [tuple(p) for p in np.argwhere(near).tolist()]


points = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(points, st.sampled_from([1.0, 5.0, 12.5, 100.0]), st.integers(1, 50))
def test_pairs_are_those_of_all_pairs_whatever_the_pieces(found: list[tuple[int, int]], radius: float, piece: int) -> None:
    xy = np.array(found, np.float64).reshape(-1, 2) / 2  # with twins, rows, and pairs exactly a radius apart
    before = graphs.PIECE_PAIRS, graphs.CHUNK_ROWS
    try:
        graphs.PIECE_PAIRS, graphs.CHUNK_ROWS = piece, 7
        pieces = list(iter_pairs(xy, radius))
    finally:
        graphs.PIECE_PAIRS, graphs.CHUNK_ROWS = before
    pairs = [p for i, j, _ in pieces for p in zip(i.tolist(), j.tolist(), strict=True)]
    assert pairs == all_pairs(xy, radius)
    for i, j, squared in pieces:
        np.testing.assert_array_equal(squared, ((xy[i] - xy[j]) ** 2).sum(axis=1))


def test_delaunay_edges_are_those_with_an_empty_circle() -> None:
    xy = np.random.default_rng(1).uniform(0, 100, (40, 2))
    expected = set()
    for a, b, c in itertools.combinations(range(len(xy)), 3):
        m = 2 * np.array([xy[b] - xy[a], xy[c] - xy[a]])
        center = np.linalg.solve(m, [(xy[b] ** 2 - xy[a] ** 2).sum(), (xy[c] ** 2 - xy[a] ** 2).sum()])
        reach = np.hypot(*(xy - center).T)
        if (np.delete(reach, [a, b, c]) > reach[a]).all():
            expected |= {(a, b), (a, c), (b, c)}
    i, j, length = delaunay_edges(xy)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == sorted(expected)
    np.testing.assert_allclose(length, np.hypot(*(xy[i] - xy[j]).T))


@pytest.mark.parametrize("xy", [np.empty((0, 2)), np.ones((1, 2)), np.eye(2), np.ones((5, 2)), np.arange(8.0).reshape(4, 2)])
def test_too_few_points_for_a_triangle_have_no_edge(xy: np.ndarray) -> None:
    assert len(delaunay_edges(xy)[0]) == 0


def test_counts_means_and_edges_of_a_slide(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    notes = call(
        "neighbors", run, "-o", out, "--radius-um", 50, "--radius-um", 20, "--delaunay",
        "--max-edge-um", 60, "--mean", "area_um2", "--mean", "circularity",
    )  # fmt: skip
    assert "2 slides" in notes
    for slide_id in ("A", "B"):
        table = pq.read_table(run / f"nuclei/{slide_id}.parquet").to_pandas()
        mpp = json.loads(pq.read_schema(run / f"nuclei/{slide_id}.parquet").metadata[b"wsiseg"])["slide"]["mpp"]
        table["circularity"] = (4 * np.pi * table.area_um2 / table.perimeter_um**2).astype(np.float32)
        xy = table[["cx", "cy"]].to_numpy(np.float64)
        found = pq.read_table(out / f"nuclei/{slide_id}.parquet").to_pandas()
        assert found.nucleus_id.tolist() == table.nucleus_id.tolist()
        for r in (20, 50):
            near = pd.DataFrame(all_pairs(xy, r / mpp), columns=["a", "b"])
            expected = near.groupby("a").size().reindex(range(len(table)), fill_value=0)
            assert found[f"n_within_{r}um"].tolist() == expected.tolist()
            for name in ("area_um2", "circularity"):
                mean = table[name].astype(float).iloc[near.b].groupby(near.a.to_numpy()).mean().reindex(range(len(table)))
                np.testing.assert_allclose(found[f"{name}_mean_within_{r}um"], mean, rtol=1e-6)
        edges = pq.read_table(out / f"radius/{slide_id}.parquet").to_pandas()
        once = near[near.a < near.b]
        assert edges.nucleus_a.tolist() == table.nucleus_id.iloc[once.a].tolist()
        assert edges.nucleus_b.tolist() == table.nucleus_id.iloc[once.b].tolist()
        np.testing.assert_allclose(edges.distance_um, np.hypot(*(xy[once.a] - xy[once.b]).T) * mpp, rtol=1e-6)
        sides = pq.read_table(out / f"delaunay/{slide_id}.parquet").to_pandas()
        assert sides.distance_um.max() <= 60
        ends = pd.concat([sides.nucleus_a, sides.nucleus_b])
        lengths = pd.concat([sides.distance_um, sides.distance_um]).groupby(ends.to_numpy()).mean()
        assert found.n_delaunay.tolist() == ends.value_counts().reindex(table.nucleus_id, fill_value=0).tolist()
        np.testing.assert_allclose(found.edge_mean_um_delaunay, lengths.reindex(table.nucleus_id), rtol=1e-5)


def test_without_edges_the_rest_is_the_same(run: Path, tmp_path: Path) -> None:
    asked = ("--radius-um", 40, "--delaunay")
    call("neighbors", run, "-o", tmp_path / "with", *asked)
    call("neighbors", run, "-o", tmp_path / "without", *asked)
    assert "made with other options" in call("neighbors", run, "-o", tmp_path / "without", *asked, "--no-edges", code=1)
    call("neighbors", run, "-o", tmp_path / "without", *asked, "--no-edges", "--overwrite")
    assert "2 finished already" in call("neighbors", run, "-o", tmp_path / "without", *asked, "--no-edges")
    for slide_id in ("A", "B"):
        one, two = (pq.read_table(tmp_path / f"{n}/nuclei/{slide_id}.parquet") for n in ("with", "without"))
        assert one.equals(two)
    assert not [p for p in (tmp_path / "without").rglob("*.parquet") if p.parent.name != "nuclei"]


def test_density_maps_count_discs(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("neighbors", run, "-o", out, "--slide", "A", "--radius-um", 60, "--radius-um", 35, "--density-step-um", 70)
    xy = pq.read_table(run / "nuclei/A.parquet", columns=["cx", "cy"]).to_pandas().to_numpy(np.float64) * 0.25
    for radius in (35, 60):
        with tifffile.TiffFile(out / f"density/A.{radius}um.tif") as file:
            page = file.pages[0]
            found = page.asarray()
            assert page.get_resolution("MICROMETER")[0] == pytest.approx(1 / 70)
        assert found.shape == (43, 43)  # 12,000 px of 0.25 um in steps of 70 um
        for row, column in ((0, 0), (10, 20), (25, 25), (30, 12)):
            near = np.hypot(xy[:, 0] - 70 * column - 35, xy[:, 1] - 70 * row - 35) <= radius
            assert found[row, column] == pytest.approx(near.sum() / (np.pi * radius**2 * 1e-6), rel=1e-6)
        assert found.max() > 0
    with pytest.raises(InputError, match="--radius-um"):
        NeighborOptions(delaunay=True, density_step_um=5.0)


def test_a_run_is_resumed_and_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    asked = ("--radius-um", 30, "--delaunay")
    call("neighbors", run, "-o", one, *asked)
    assert "1 slides" in call("neighbors", run, "-o", two, *asked, "--slide", "A")
    assert "1 finished already" in call("neighbors", run, "-o", two, *asked)
    for path in one.rglob("*.parquet"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    notes = call("neighbors", run, "-o", two, "--radius-um", 40, code=1)
    assert "made with other options (radii_um [30.0], delaunay True)" in notes
    assert "2 slides" in call("neighbors", run, "-o", two, "--radius-um", 40, "--overwrite")


def test_questions_without_an_answer_are_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--delaunay"):
        NeighborOptions()
    with pytest.raises(InputError, match="above 0"):
        NeighborOptions(radii_um=(0.0,))
    with pytest.raises(InputError, match="got 'tile_id'"):
        NeighborOptions(radii_um=(5.0,), means=("tile_id",))
    notes = call("neighbors", run, "-o", tmp_path / "a", "--radius-um", 5, "--mean", "solidity", code=1)
    assert "wsiseg features" in notes
    assert "2 failed" in notes


def test_an_empty_slide_has_empty_files(run: Path, tmp_path: Path) -> None:
    path = run / "nuclei/A.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    out = tmp_path / "out"
    call("neighbors", path, "-o", out, "--radius-um", 5, "--delaunay")
    for kind in ("radius", "delaunay", "nuclei"):
        assert pq.read_table(out / f"{kind}/A.parquet").num_rows == 0
    assert pq.read_schema(out / "nuclei/A.parquet").field("area_um2_mean_within_5um").type == pa.float32()
