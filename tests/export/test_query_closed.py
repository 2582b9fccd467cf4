"""``wsiseg query`` can read the tables of its run and nothing else, unless that is allowed."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tests.export.test_export_query import run  # noqa: F401  (a fixture)
from wsiseg.cli.main import main
from wsiseg.errors import InputError
from wsiseg.export.closed import _Shared, closed_database
from wsiseg.export.query import query

SECRET = "the-secret-of-another-file"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files that no question may read, in a folder to which it may write nothing."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret.txt", "secret.csv", "secret.json"):
        (folder / name).write_text(f'{{"word": "{SECRET}"}}\n' if name.endswith("json") else f"word\n{SECRET}\n")
    pq.write_table(pa.table({"word": [SECRET]}), folder / "secret.parquet")
    with duckdb.connect(str(folder / "secret.db")) as db:
        db.execute(f"create table t as select '{SECRET}' word")
    return folder


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine and the requests that reached it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


READS = [
    "select * from read_csv('{out}/secret.csv')",
    "select * from read_text('{out}/secret.txt')",
    "select * from read_blob('{out}/secret.txt')",
    "select * from read_json('{out}/secret.json')",
    "select * from read_parquet('{out}/secret.parquet')",
    "select * from '{out}/secret.parquet'",
    "select * from '{out}/secret.csv'",
    "select * from 'file://{out}/secret.csv'",
    "select * from read_parquet('{out}/*.parquet')",
    "select * from read_parquet('{run}/nuclei/../../outside/secret.parquet')",
    "select * from read_parquet('run://../outside/secret.parquet')",
    "select * from read_parquet('run://{out}/secret.parquet')",
    "select * from read_parquet('run://nuclei/../../outside/secret.parquet')",
    "select * from glob('{out}/*')",
    "select * from sniff_csv('{out}/secret.csv')",
    "select * from parquet_metadata('{out}/secret.parquet')",
    "select * from parquet_kv_metadata('{out}/secret.parquet')",
    "select * from query('select * from read_text(''{out}/secret.txt'')')",
    "attach '{out}/secret.db' as s (read_only); select * from s.t",
    "select * from read_duckdb('{out}/secret.db')",
    "create table c (word varchar); copy c from '{out}/secret.csv'; select * from c",
    "import database '{out}'",
    "select getenv('HOME')",
    "select * from hidden_variable",
    "select * from read_parquet('{web}/a.parquet')",
    "select * from read_csv('{web}/a.csv')",
    "select * from read_csv('s3://bucket/a.csv')",
    "install httpfs",
    "load httpfs",
    "load spatial",
    "load '{out}/secret.txt'",
    "attach '{web}/a.db' as w",
    "select * from which_secret('s3://a', 's3')",
    "set enable_external_access = true; select * from '{out}/secret.csv'",
    "reset enable_external_access; select * from '{out}/secret.csv'",
    "set allowed_paths = ['{out}/secret.csv']; select * from '{out}/secret.csv'",
    "set allowed_directories = ['{out}']; select * from '{out}/secret.csv'",
    "set lock_configuration = false; set enable_external_access = true; select * from '{out}/secret.csv'",
    "set python_enable_replacements = true; select * from hidden_variable",
]
WRITES = [
    "copy (select 1) to '{out}/new.csv'",
    "copy nuclei to '{out}/new.parquet'",
    "copy (select 1) to '{run}/slides.parquet'",
    "copy (select 1) to '{run}/slides.parquet' (use_tmp_file false)",
    "copy (select 1) to 'run://slides.parquet' (use_tmp_file false)",
    "copy (select 1) to 'run://nuclei/A.parquet'",
    "copy (select 1 a, 2 b) to '{out}/parts' (format parquet, partition_by (a))",
    "with x as (copy (select 1) to 'run://slides.parquet' (use_tmp_file false)) select * from x",
    "with x as (copy (select 1) to '{run}/slides.parquet' (use_tmp_file false)) select * from x",
    "with x as (copy (select 1) to '{out}/new.csv') select * from x",
    "explain analyze copy (select 1) to '{out}/new.csv'",
    "explain analyze copy (select 1) to 'run://slides.parquet' (use_tmp_file false)",
    "prepare p as copy (select 1) to '{out}/new.csv'; execute p",
    "export database '{out}/all'",
    "attach '{out}/new.db' as n; create table n.t as select 1",
    "set temp_directory = '{out}/spill'; select 1",
    "pragma profiling_output = '{out}/profile.json'",
    "set log_query_path = '{out}/log.txt'",
    "call enable_logging(storage = 'file', storage_path = '{out}')",
    "call enable_logging('QueryLog', storage = 'file', storage_config = {{'path': '{out}'}})",
    "create persistent secret s (type s3)",
    "set home_directory = '{out}'",
    "set extension_directory = '{out}'",
    "delete from nuclei",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("sql", READS + WRITES)
def test_no_question_reaches_out_of_the_run(
    run: Path,  # noqa: F811
    outside: Path,
    web: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sql: str,
) -> None:
    hidden_variable = pa.table({"word": [SECRET]})
    assert hidden_variable.num_rows
    monkeypatch.chdir(outside)
    monkeypatch.setenv("HOME", str(outside))
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        query(run, sql.format(out=outside, run=run, web=web[0]))
    assert SECRET not in str(caught.value)
    assert contents(tmp_path) == before
    assert web[1] == []


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) n from nuclei",
        "from nuclei select count(*) n",
        "with c as (select slide_id, count(*) k from nuclei group by all) select sum(k) n from c",
        "select n.n from (select count(*) n from features) n, (select count(*) from slides), (select count(*) from grades)",
        "create table t as select * from nuclei; select count(*) n from t",
        "select (A + B)::bigint n from (pivot (select slide_id, 1 one from nuclei) on slide_id using sum(one))",
    ],
)
def test_questions_to_the_run_are_answered_as_in_an_open_database(run: Path, sql: str) -> None:  # noqa: F811
    closed, units = query(run, sql)
    assert closed["n"].to_pylist() == [4000]
    assert (closed, units) == query(run, sql, allow_files=True)
    kinds = [query(run, "select * from features limit 0", allow_files=open_)[0].schema for open_ in (False, True)]
    assert kinds[0].equals(kinds[1])


def test_names_with_characters_of_patterns_are_names(run: Path) -> None:  # noqa: F811
    (run / "nuclei/A.parquet").rename(run / "nuclei/a [1] * 100%?'.parquet")
    answer, _ = query(run, "select slide_id, count(*) n from nuclei group by all order by 1")
    assert answer.to_pydict() == {"slide_id": ["B", "a [1] * 100%?'"], "n": [2000, 2000]}


def test_what_does_not_fit_in_memory_is_spilled_where_it_is_removed(
    run: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    answer, _ = query(run, "select current_setting('temp_directory') place")
    place = Path(answer["place"][0].as_py())
    assert place.parent == tmp_path / "tmp"
    assert not place.exists()


def test_the_option_opens_the_file_system(run: Path, outside: Path, tmp_path: Path) -> None:  # noqa: F811
    sql = f"select word, count(*) n from nuclei, '{outside}/secret.csv' group by all"
    refused = CliRunner().invoke(main, ["query", str(run), sql])
    assert refused.exit_code == 2
    assert "nuclei, features" in refused.output
    assert "--allow-files" in refused.output
    done = CliRunner().invoke(main, ["query", str(run), sql, "--allow-files", "-o", str(tmp_path / "a.csv")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == f'"{SECRET}",4000'
    query(run, f"copy (select 1 one) to '{tmp_path}/b.csv'", allow_files=True)
    assert (tmp_path / "b.csv").read_text() == "one\n1\n"


def test_threads_of_a_query_share_a_handle_and_get_their_own_bytes(tmp_path: Path) -> None:
    """DuckDB moves and reads in two calls: between them another thread moves the same handle."""
    file = tmp_path / "numbers"
    file.write_bytes(bytes(range(200)))
    reading = _Shared(file.open("rb"))
    reading.seek(10)
    other = threading.Thread(target=lambda: (reading.seek(100), reading.read(5)))
    other.start()
    other.join()
    assert (reading.read(5), reading.tell()) == (bytes(range(10, 15)), 15)
    assert (reading.seek(-3, 2), reading.read(9)) == (197, bytes(range(197, 200)))
    reading.close()


def test_sums_over_many_row_groups_are_those_of_arrow(tmp_path: Path) -> None:
    numbers = {name: np.random.default_rng(k).integers(0, 1 << 40, 200_000) for k, name in enumerate("abcd")}
    pq.write_table(pa.table(numbers), tmp_path / "t.parquet", row_group_size=2_000)
    expected = tuple(int(v.sum()) for v in numbers.values())
    for _ in range(20):
        with closed_database({"run://t.parquet": tmp_path / "t.parquet"}) as db:
            assert (
                db.execute("select sum(a), sum(b), sum(c), sum(d) from read_parquet('run://t.parquet')").fetchone() == expected
            )
