"""A run in a bucket: finished slides only, whole objects, nothing twice; a window is read without its table."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tests.export.tables import SLIDE_ID, make_table
from tests.fetch.s3_server import NAME, Bucket
from tests.run.cuttable import Cuttable
from wsiseg.cli import main
from wsiseg.errors import FetchError, FormatError, InputError
from wsiseg.export import publish as publish_module
from wsiseg.export.publish import publish_run
from wsiseg.export.query import query
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_record import SlideRecord, write_slide
from wsiseg.rows import SlideRow

PREFIX = f"s3://{NAME}/cohort/run-1"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 row groups."""
    return make_table(tmp_path_factory.mktemp("table"), n=20_000, rows=500)


@pytest.fixture
def run(table: Path, tmp_path: Path) -> Path:
    """A run of one finished slide, one that failed, and QC."""
    root = tmp_path / "run"
    for name in ("nuclei", "slides", "qc/pages", "parts"):
        (root / name).mkdir(parents=True)
    (root / "run.json").write_text(json.dumps({"results": {}, "digest": "d" * 16}))
    shutil.copyfile(table, root / "nuclei" / table.name)
    folder = RunFolder(root)
    write_slide(folder, SlideRecord("d" * 16, SlideRow.blank(SLIDE_ID, "done"), table_bytes=table.stat().st_size))
    write_slide(folder, SlideRecord("d" * 16, SlideRow.blank("bad", "failed")))
    (root / "nuclei/half.parquet").write_bytes(b"half")
    pq.write_table(pa.table({"slide_id": [SLIDE_ID], "cohort": ["LUAD"]}), root / "slides.parquet")
    (root / "qc/pages/a.html").write_text("page")
    return root


def local_objects(run: Path) -> dict[str, bytes]:
    names = (f"nuclei/{SLIDE_ID}.parquet", f"slides/{SLIDE_ID}.json", "qc/pages/a.html", "run.json", "slides.parquet")
    return {f"cohort/run-1/{n}": (run / n).read_bytes() for n in names}


def test_what_is_finished_is_sent_once(run: Path, bucket: Bucket) -> None:
    done = CliRunner().invoke(main, ["publish", str(run), PREFIX])
    assert done.exit_code == 0, done.output
    assert {k: bucket.get(k) for k in bucket.keys()} == local_objects(run)  # noqa: SIM118
    assert "left out   1 slides that are not finished: bad" in done.output
    again = publish_run(run, PREFIX + "/")
    assert (again.sent, again.there) == (0, 5)
    (run / "qc/pages/a.html").write_text("Page")  # of the same size
    third = publish_run(run, PREFIX)
    assert (third.sent, third.there) == (1, 4)
    assert bucket.get("cohort/run-1/qc/pages/a.html") == b"Page"


def test_large_files_go_in_parts_and_are_known_again(run: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_module, "PART_BYTES", 5 * 2**20)
    data = np.random.default_rng(0).bytes(13 * 2**20)
    (run / "qc/large.bin").write_bytes(data)
    publish_run(run, PREFIX)
    key = "cohort/run-1/qc/large.bin"
    assert bucket.get(key) == data
    assert bucket.client.head_object(Bucket=NAME, Key=key)["ETag"].endswith('-3"')
    shutil.rmtree(run / "progress")  # the notes: the bucket's own checksums suffice
    assert publish_run(run, PREFIX).sent == 0


def test_a_bucket_whose_tags_are_no_checksums_is_not_sent_everything_again(
    run: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_run(run, PREFIX)
    monkeypatch.setattr(
        publish_module, "_checksums", lambda path: (path.stat().st_size, hashlib.sha1(path.read_bytes()).hexdigest(), "")
    )
    first = publish_run(run, PREFIX)
    assert first.sent == 5, "as if the store gave tags of its own"
    assert publish_run(run, PREFIX).sent == 0, "what was sent as which object is noted"


def test_a_broken_line_resumes(run: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def stop(name: str, n_bytes: int) -> None:
        sent.append(name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_run(run, PREFIX, stop)
    there = bucket.keys()
    expected = local_objects(run)
    assert {k: bucket.get(k) for k in there} == {k: expected[k] for k in there}, "whole objects only"
    assert "cohort/run-1/slides.parquet" not in there, "the list comes last"
    rest = publish_run(run, PREFIX)
    assert rest.there == len(there)
    assert {k: bucket.get(k) for k in bucket.keys()} == expected  # noqa: SIM118


def test_refusals_say_what_is_expected(run: Path, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected s3://BUCKET/PREFIX"):
        publish_run(run, "/tmp/elsewhere")
    with pytest.raises(FetchError, match="s3://nobody/x"):
        publish_run(run, "s3://nobody/x")
    with pytest.raises(InputError, match="contains no wsiseg run"):
        publish_run(tmp_path, PREFIX)
    with (run / f"nuclei/{SLIDE_ID}.parquet").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(FormatError, match=r"expected \d+ bytes, got \d+"):
        publish_run(run, PREFIX)
    assert not bucket.keys()


WINDOW = (2000, 2000, 700, 700)


def met(table: Path, columns: set[str] | None = None) -> tuple[int, int, int]:
    """Return rows whose box meets the window, and the bytes of the row groups that do: by pyarrow, on the local file."""
    x, y, w, h = WINDOW
    n_rows = n_bytes = n_groups = 0
    with pq.ParquetFile(table) as file:
        for k in range(file.num_row_groups):
            box = file.read_row_group(k, columns=["bbox"])["bbox"].combine_chunks()
            xmin, ymin, xmax, ymax = (box.field(f).to_numpy() for f in ("xmin", "ymin", "xmax", "ymax"))
            if xmin.min() <= x + w and xmax.max() >= x and ymin.min() <= y + h and ymax.max() >= y:
                group = file.metadata.row_group(k)
                n_groups += 1
                n_bytes += sum(group.column(c).total_compressed_size for c in range(group.num_columns))
            n_rows += int(((xmin <= x + w) & (xmax >= x) & (ymin <= y + h) & (ymax >= y)).sum())
    assert 0 < n_groups < 15
    return n_rows, n_bytes, table.stat().st_size


def test_a_window_is_read_from_the_bucket_without_the_table(
    run: Path, table: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import geopandas
    import pyarrow.dataset as ds
    import pyarrow.fs

    publish_run(run, PREFIX)
    n_rows, group_bytes, table_bytes = met(table)
    link = Cuttable(("127.0.0.1", int(bucket.url.rpartition(":")[2])))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
    x, y, w, h = WINDOW
    where = f"bbox.xmin <= {x + w} and bbox.xmax >= {x} and bbox.ymin <= {y + h} and bbox.ymax >= {y}"
    key = f"cohort/run-1/nuclei/{SLIDE_ID}.parquet"

    def by_query() -> int:
        return query(PREFIX, f"select * from nuclei where slide_id = '{SLIDE_ID}' and {where}")[0].num_rows

    def by_pyarrow() -> int:
        fs = pyarrow.fs.S3FileSystem(endpoint_override=f"127.0.0.1:{link.port}", scheme="http", region="us-east-1")
        box = [pc.field("bbox", f) for f in ("xmin", "ymin", "xmax", "ymax")]
        meets = (box[0] <= x + w) & (box[2] >= x) & (box[1] <= y + h) & (box[3] >= y)
        return ds.dataset(f"{NAME}/{key}", filesystem=fs, format="parquet").to_table(filter=meets).num_rows

    def by_geopandas() -> int:
        return len(geopandas.read_parquet(f"s3://{NAME}/{key}", bbox=(x, y, x + w, y + h)))

    for read in (by_query, by_pyarrow, by_geopandas):
        before = link.carried_bytes
        assert read() == n_rows, read.__name__
        carried = link.carried_bytes - before
        assert carried < group_bytes + 0.2 * table_bytes, f"{read.__name__}: {carried} bytes, the row groups have {group_bytes}"
    link.__exit__(None, None, None)


def test_the_tables_that_list_slides_are_views_of_a_bucket_too(run: Path, bucket: Bucket) -> None:
    publish_run(run, PREFIX)
    reported = CliRunner().invoke(main, ["query", PREFIX, "select count(*) as n from nuclei"])
    assert reported.exit_code == 0, reported.output
    assert "20000" in reported.output
    with pytest.raises(InputError, match="expected a run folder"):
        query(f"s3://{NAME}/elsewhere", "select 1")
    with pytest.raises(InputError, match="can access only the tables of the run"):
        query(PREFIX, f"select * from read_parquet('{run}/slides.parquet')")
