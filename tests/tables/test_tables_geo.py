"""WKB, Hilbert order and schemas against shapely, a textbook oracle and the published rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.rings import nuclei
from wsiseg.errors import FormatError
from wsiseg.schema import BATCH_COLUMNS, ERRORS, NUCLEI, SLIDES, Column
from wsiseg.tables import arrow_schema, geo_metadata, hilbert_key, read_table_meta, wkb_polygons, wkb_rings
from wsiseg.tables import geo as geo_module

ROOT = Path(__file__).resolve().parents[2]
finite = st.floats(-1e9, 1e9, allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(finite, finite), min_size=3, max_size=9), max_size=6))
def test_wkb_is_shapelys_byte_for_byte(rings: list[list[tuple[float, float]]]) -> None:
    closed = [np.array([*ring, ring[0]], np.float64) for ring in rings]
    offsets = np.cumsum([0, *(len(r) for r in closed)]).astype(np.int64)
    xy = np.concatenate(closed) if closed else np.empty((0, 2))
    wkb = wkb_polygons(xy, offsets)
    assert wkb.to_pylist() == [shapely.to_wkb(shapely.Polygon(r), byte_order=1) for r in closed]
    back_xy, back_offsets = wkb_rings(wkb)
    assert np.array_equal(back_offsets, offsets)
    assert np.array_equal(back_xy, xy)


def test_wkb_rings_of_slices_and_chunks() -> None:
    batch = nuclei(0, 50, 2000)
    wkb = wkb_polygons(batch.xy.astype(np.float64), batch.ring_offsets)
    lo, hi = batch.ring_offsets[[10, 31]]
    for piece in (wkb.slice(10, 21), pa.chunked_array([wkb.slice(10, 5), wkb.slice(15, 0), wkb.slice(15, 16)])):
        xy, offsets = wkb_rings(piece)
        assert np.array_equal(xy, batch.xy[lo:hi])
        assert np.array_equal(offsets, batch.ring_offsets[10:32] - lo)
    assert len(wkb_rings(pa.chunked_array([], pa.binary()))[0]) == 0


def test_wkb_rings_refuses_other_shapes() -> None:
    hole = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(2, 2), (3, 2), (3, 3), (2, 3)]])
    box = shapely.box(0, 0, 1, 1)
    for bad in (shapely.to_wkb(hole), shapely.to_wkb(box, byte_order=0), shapely.to_wkb(shapely.Point(0, 0)), b"", None):
        with pytest.raises(FormatError):
            wkb_rings(pa.array([shapely.to_wkb(box, byte_order=1), bad], pa.binary()))


def test_wkb_too_large_for_one_array_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geo_module, "MAX_BINARY_BYTES", 13 + 16 * 5 - 1)
    with pytest.raises(ValueError, match="fewer rings"):
        wkb_polygons(np.zeros((5, 2)), np.array([0, 5]))


def hilbert_oracle(x: int, y: int, order: int) -> int:
    """The textbook loop (J. K. Lawder, "Calculation of mappings between one and n-dimensional values", 2000), one cell."""
    key, side = 0, 1 << (order - 1)
    while side:
        right, below = int(x & side > 0), int(y & side > 0)
        key += side * side * ((3 * right) ^ below)
        if not below:
            if right:
                x, y = (1 << order) - 1 - x, (1 << order) - 1 - y
            x, y = y, x
        side >>= 1
    return key


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=8), st.integers(0, 31))
def test_hilbert_is_the_textbook_curve(cells: list[tuple[int, int]], shift: int) -> None:
    xy = np.array(cells, np.uint32).reshape(-1, 2) >> np.uint32(shift)
    keys = hilbert_key(xy[:, 0], xy[:, 1])
    assert keys.dtype == np.uint64
    assert keys.tolist() == [hilbert_oracle(int(x), int(y), 32) for x, y in xy]


def test_hilbert_walks_from_neighbor_to_neighbor() -> None:
    x, y = (a.ravel().astype(np.uint32) for a in np.meshgrid(np.arange(128), np.arange(128)))
    order = np.argsort(hilbert_key(x, y))
    step = np.abs(np.diff(x[order].astype(int))) + np.abs(np.diff(y[order].astype(int)))
    assert np.array_equal(np.sort(hilbert_key(x, y)), np.arange(128 * 128))
    assert (step == 1).all()


@pytest.mark.parametrize("table", [NUCLEI, BATCH_COLUMNS, SLIDES, ERRORS], ids=["nuclei", "batch", "slides", "errors"])
def test_schemas_carry_units(table: tuple[Column, ...]) -> None:
    schema = arrow_schema(table)
    assert schema.names == [c.name for c in table]
    for column in table:
        field = schema.field(column.name)
        assert field.metadata[b"unit"].decode() == column.unit
        assert field.metadata[b"description"].decode() == column.meaning
        assert not field.nullable
    assert all(f.nullable for f in arrow_schema(table, nullable=True))


def test_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match="decimal"):
        arrow_schema([Column("a", "decimal", "", "")])


def test_geo_metadata_states_what_readers_need() -> None:
    column = geo_metadata((0, 1, 2, 3))["columns"]["geometry"]
    assert "crs" in column
    assert column["crs"] is None
    assert column["bbox"] == [0.0, 1.0, 2.0, 3.0]
    assert "bbox" not in geo_metadata(None)["columns"]["geometry"]


def test_table_meta_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("junk", "other"):
        with pytest.raises(FormatError, match=name):
            read_table_meta(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        read_table_meta(tmp_path / "none.parquet")


def test_package_imports_without_pyarrow() -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"  # import pyarrow now fails
        "import wsiseg.tables, wsiseg.write, wsiseg.summarize\n"
        "import numpy as np; wsiseg.tables.hilbert_key(np.zeros(1, np.uint32), np.zeros(1, np.uint32))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
