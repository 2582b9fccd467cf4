"""Part files give back what went in, and a damaged one never passes for a whole one."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.rings import nuclei
from wsiseg.errors import FormatError
from wsiseg.schema import BATCH_COLUMNS
from wsiseg.tables import sweep_partials
from wsiseg.types import Box, PolygonBatch, Tile, TileStats
from wsiseg.write import read_part, read_part_header, write_part
from wsiseg.write.rings import decode_rings, encode_rings, recode, widest

TILE = Tile("TCGA-XX", 17, Box(4000, 8000, 4000, 4000), Box(3936, 7936, 4128, 4128), 1.0, 0.4)
STATS = TileStats(16_000_000, 9_000_000, 3_000_000, 2**40, 2**41)
SECONDS = {"read": 0.25, "predict": 1.5}


def empty_batch() -> PolygonBatch:
    columns = {c.name: np.empty(0, c.arrow) for c in BATCH_COLUMNS}
    return PolygonBatch(np.empty((0, 2), np.int32), np.zeros(1, np.int64), columns)


def same(a: PolygonBatch, b: PolygonBatch) -> None:
    assert np.array_equal(a.xy, b.xy)
    assert np.array_equal(a.ring_offsets, b.ring_offsets)
    assert set(a.columns) == set(b.columns)
    for name, values in a.columns.items():
        assert b.columns[name].dtype == values.dtype, name
        assert np.array_equal(b.columns[name], values), name


def test_round_trip(tmp_path: Path) -> None:
    batch = nuclei(3, 300, 4000)
    n_bytes = write_part(tmp_path / "p.parquet", batch, TILE, STATS, SECONDS, "d1")
    header, back = read_part(tmp_path / "p.parquet")
    same(batch, back)
    assert n_bytes == (tmp_path / "p.parquet").stat().st_size < 90 * len(batch) + 4000
    assert (header.digest, header.slide_id, header.tile_id, header.n_nuclei) == ("d1", "TCGA-XX", 17, 300)
    assert (header.stats, header.seconds, header.status) == (STATS, SECONDS, "done")
    assert header.bounds_wpx == (*batch.xy.min(0).tolist(), *batch.xy.max(0).tolist())
    assert read_part_header(tmp_path / "p.parquet") == header


@pytest.mark.parametrize(("stats", "status"), [(TileStats(), "empty"), (STATS, "done")])
def test_tile_without_nuclei_has_a_part(tmp_path: Path, stats: TileStats, status: str) -> None:
    assert write_part(tmp_path / "p.parquet", empty_batch(), TILE, stats, {}, "d") < 4000
    header, back = read_part(tmp_path / "p.parquet")
    same(empty_batch(), back)
    assert (header.status, header.n_nuclei, header.bounds_wpx) == (status, 0, None)


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_part(tmp_path / name, nuclei(3, 50, 1000), TILE, STATS, SECONDS, "d")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_part(tmp_path: Path) -> None:
    assert read_part_header(tmp_path / "none.parquet") is None
    with pytest.raises(FormatError, match="missing"):
        read_part(tmp_path / "none.parquet")


def test_every_kind_of_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_part(path, nuclei(3, 40, 1000), TILE, STATS, SECONDS, "d")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:k] for k in (0, 3, 4, 100, len(whole) // 2, len(whole) - 1)]
    places = [*rng.integers(0, len(whole), 150), *range(len(whole) - 150, len(whole))]
    broken += [whole[:p] + bytes([whole[p] ^ (1 << int(rng.integers(8)))]) + whole[p + 1 :] for p in places]
    broken += [whole + b"x", b"PAR1" + whole, whole[:500] + whole[600:]]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"p\.parquet"):
            read_part_header(path)
    path.write_bytes(whole)
    assert read_part_header(path) is not None


def test_a_table_is_not_a_part(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(FormatError):
        read_part_header(tmp_path / "t.parquet")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_part(tmp_path / "p.parquet", nuclei(3, 50, 1000), TILE, STATS, SECONDS, "d")
    assert list(tmp_path.iterdir()) == []
    assert sweep_partials(tmp_path) == 0


@pytest.mark.parametrize("spoil", ["lacking", "short", "open"])
def test_a_batch_that_contradicts_itself_is_refused(tmp_path: Path, spoil: str) -> None:
    batch = nuclei(3, 20, 1000)
    columns, xy = dict(batch.columns), batch.xy.copy()
    if spoil == "lacking":
        del columns["area_wpx"]
    elif spoil == "short":
        columns["area_wpx"] = columns["area_wpx"][:-1]
    else:
        xy[0] += 1
    with pytest.raises(ValueError, match=r"area_wpx|closed"):
        write_part(tmp_path / "p", PolygonBatch(xy, batch.ring_offsets, columns), TILE, STATS, {}, "d")


coordinate = st.integers(-(2**30) + 1, 2**30 - 1) | st.integers(-40, 40) | st.integers(-9000, 9000)
free_rings = st.lists(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=7), max_size=5)


@settings(max_examples=80, deadline=None)
@given(free_rings)
def test_any_closed_rings_survive_coding(rings: list[list[tuple[int, int]]]) -> None:
    closed = [np.array([*ring, ring[0]], np.int32) for ring in rings]
    offsets = np.cumsum([0, *(len(r) for r in closed)]).astype(np.int64)
    xy = np.concatenate(closed) if closed else np.empty((0, 2), np.int32)
    back, back_offsets = decode_rings(encode_rings(xy, offsets))
    assert np.array_equal(back, xy)
    assert np.array_equal(back_offsets, offsets)


def same_cycle(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two closed rings are equal but for where they begin."""
    return any(np.array_equal(np.roll(a[:-1], k, axis=0), b[:-1]) for k in range(len(a) - 1)) and bool((b[0] == b[-1]).all())


@pytest.mark.parametrize("first_axis", [0, 1])
@pytest.mark.parametrize(("size", "bits"), [(5, 8), (127, 8), (128, 16), (40_000, 32)])
def test_pixel_edge_rings_cost_one_narrow_number_a_vertex(first_axis: int, size: int, bits: int) -> None:
    square = np.array([(0, 0), (size, 0), (size, size), (0, size), (0, 0)], np.int32)
    square = square if first_axis == 0 else np.roll(square[:-1], -1, axis=0)[[0, 1, 2, 3, 0]]
    coded = encode_rings(np.concatenate([square, square + 7]), np.array([0, 5, 10]))
    assert (coded.coding.kind, coded.coding.first_axis, coded.coding.bits) == ("runs", first_axis, bits)
    assert len(coded.steps) == 8
    for other in (nuclei(0, 3, 500), nuclei(1, 3, 500)):
        rest = encode_rings(other.xy, other.ring_offsets)
        wide = widest([coded.coding, rest.coding])
        for rings in (coded, rest):
            before, offsets = decode_rings(rings)
            after, after_offsets = decode_rings(recode(rings, wide))
            assert np.array_equal(offsets, after_offsets)
            for lo, hi in itertools.pairwise(offsets):
                assert same_cycle(before[lo:hi], after[lo:hi])
                assert after[lo, 0] == after[lo + 1, 0]  # begun along y, which packs better


def test_damaged_steps_are_seen() -> None:
    batch = nuclei(0, 30, 800)
    coded = encode_rings(batch.xy, batch.ring_offsets)
    coded.steps[100] += 1
    with pytest.raises(FormatError, match="damaged"):
        decode_rings(coded)
