"""What stands in JSON and tables and what the program works with: one is made of the other, checked, and nothing is lost."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg import schema
from wsiseg.config import RunConfig
from wsiseg.decode import OMITTED, decode, encode
from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.evaluation.compare.slide import ComparedRow
from wsiseg.qc.grades import SlideGrade
from wsiseg.qc.rows import EstimateRow, FlagRow, OrderRow, PatchRow, PredictedRow
from wsiseg.questions.rows import RegionRow
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.results.run_record import RunNote
from wsiseg.results.slide_record import (
    FileFacts,
    SlideArguments,
    SlideRecord,
    read_slide,
    slide_or_none,
    slide_record,
    write_slide,
)
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.schema import Column
from wsiseg.types import Processor, Stain

ARROW = {"string": {str}, "int32": {int}, "int64": {int}, "float64": {float}, "wkb": {bytes}}


@dataclass(frozen=True, slots=True)
class Inner:
    x: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    text: str
    share: float
    kind: Literal["a", "b"]
    inner: Inner | None
    pairs: tuple[Inner, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    flag: bool = False
    rare: str = field(default="", metadata=OMITTED)


GOOD = {"text": "t", "share": 0.5, "kind": "a", "inner": {"x": 1, "names": ["n"]}, "by_name": {"k": 2.0}}


@given(
    st.builds(
        Outer,
        text=st.text(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        kind=st.sampled_from(["a", "b"]),
        inner=st.none() | st.builds(Inner, x=st.integers(), names=st.lists(st.text()).map(tuple)),
        pairs=st.lists(st.builds(Inner, x=st.integers())).map(tuple),
        by_name=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        flag=st.booleans(),
        rare=st.text(),
    )
)
def test_what_is_written_is_read_again(record: Outer) -> None:
    plain = json.loads(json.dumps(encode(record)))
    assert decode(Outer, plain, "here") == record
    assert ("rare" in plain) == bool(record.rare)


WRONG: dict[str, tuple[Any, str]] = {
    "no record": ([1], "expected it to be a group of fields, found [1]"),
    "text for a number": ({**GOOD, "share": "0.5"}, "expected field share to be a number, found '0.5'"),
    "truth for a number": ({**GOOD, "inner": {"x": True}}, "expected field inner.x to be a whole number, found True"),
    "fraction for a whole number": ({**GOOD, "inner": {"x": 1.5}}, "expected field inner.x to be a whole number, found 1.5"),
    "no number": ({**GOOD, "share": float("nan")}, "expected field share to be a number, found nan"),
    "infinity": ({**GOOD, "by_name": {"k": float("inf")}}, "expected field by_name.k to be a number, found inf"),
    "a word that is none of them": ({**GOOD, "kind": "c"}, "expected field kind to be one of ['a', 'b'], found 'c'"),
    "deep in a list": ({**GOOD, "pairs": [{"x": 1}, {"x": None}]}, "field pairs[1].x to be a whole number, found None"),
    "a field too few": ({k: v for k, v in GOOD.items() if k != "kind"}, "expected field kind (one of ['a', 'b'])"),
    "a field too many": ({**GOOD, "inner": {"x": 1, "y": 2}}, "field inner.y is unknown in this version"),
    "null": ({**GOOD, "text": None}, "expected field text to be text, found None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_does_not_fit_is_named(name: str) -> None:
    raw, words = WRONG[name]
    assert decode(Outer, GOOD, "here").inner == Inner(1, ("n",))
    with pytest.raises(ConfigError) as caught:
        decode(Outer, raw, "place", ConfigError)
    assert str(caught.value).startswith("place: ")
    assert words in str(caught.value)


ROWS = [
    (SlideRow, schema.SLIDES), (ErrorRow, schema.ERRORS), (FlagRow, schema.OUTLIERS), (PatchRow, schema.PATCHES),
    (PredictedRow, schema.PREDICTED), (EstimateRow, schema.PREDICTED_SLIDES), (OrderRow, schema.REVIEW_ORDER),
    (SlideGrade, schema.GRADED), (RegionRow, schema.REGIONS), (ComparedRow, schema.COMPARED),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), ROWS)
def test_rows_have_the_columns_of_the_schema(row: type, columns: tuple[Column, ...]) -> None:
    hints = typing.get_type_hints(row)
    assert [f.name for f in fields(row) if f.name != "other"] == [c.name for c in columns]
    for column in columns:
        hint = hints[column.name]
        assert set(typing.get_args(hint) or [hint]) - {type(None)} == ARROW[column.arrow], column.name


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    return made


RECORD = SlideRecord(
    "d" * 16,
    SlideRow.blank("s", "done", n_nuclei=3, mpp=0.25, path="/in/s.svs"),
    (ErrorRow("s", 4, 0, 0, "TileReadError: bad", 3, "node7", "w1"),),
    asked=SlideArguments(0.25, "", "bounds"),
    file=FileFacts("/in/s.svs", 12, 34, "c" * 16),
    n_tiles=9,
    stain=Stain("reinhard", (1.0, 2.5)),
    level_downsamples=(1.0, 4.0),
)


def test_slide_record_is_read_as_written_and_keeps_what_a_newer_version_added(folder: RunFolder) -> None:
    write_slide(folder, RECORD)
    assert read_slide(folder, "s") == RECORD
    path = folder.slide_json("s")
    plain = json.loads(path.read_text())
    assert plain["objective_power"] is None, "a segmented slide says that its power is not known"
    plain["newer"] = {"a": [1]}
    plain["row"]["newer_column"] = 7
    plain["asked"]["newer_wish"] = True
    path.write_text(json.dumps(plain))
    record = read_slide(folder, "s")
    assert record.row == RECORD.row
    assert record.asked != RECORD.asked, "something else was asked for, so it is not the same"
    write_slide(folder, record)
    assert json.loads(path.read_text()) == plain


def test_a_failed_slide_states_what_is_known_only(folder: RunFolder) -> None:
    write_slide(folder, SlideRecord("d", SlideRow.blank("s", "failed", error="no")))
    assert set(json.loads(folder.slide_json("s").read_text())) == {"digest", "row", "errors"}


BROKEN = {
    "cut short": lambda plain: json.dumps(plain)[:-5],
    "text for a count": lambda plain: json.dumps({**plain, "row": {**plain["row"], "n_nuclei": "3"}}),
    "an older row": lambda plain: json.dumps({**plain, "row": {"slide_id": "s"}}),
    "a list": lambda plain: json.dumps([plain]),
}
SAID = {
    "cut short": "unreadable",
    "text for a count": "row.n_nuclei to be a whole number or null, found '3'",
    "an older row": "expected field row.cohort (text)",
    "a list": "expected it to be a group of fields",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_slide_record_is_refused_with_file_and_field(name: str, folder: RunFolder) -> None:
    write_slide(folder, RECORD)
    path = folder.slide_json("s")
    path.write_text(BROKEN[name](json.loads(path.read_text())))
    with pytest.raises(FormatError) as caught:
        slide_record(folder, "s")
    for part in (str(path), SAID[name], "run the same command again"):
        assert part in str(caught.value)
    assert slide_or_none(folder, "s") is None
    with pytest.raises(InputError, match=r"has no slide 't'\. It has: s"):
        slide_record(folder, "t")


def test_run_record_keeps_what_a_newer_version_added(folder: RunFolder) -> None:
    config, here = RunConfig(), Processor("a" * 16, "Xeon", "one")
    digest = folder.claim(config, {"weights": "open"}, RunNote(("wsiseg",), "2026-01-01", "me"), here, "chosen")
    plain = json.loads(folder.run_json.read_text())
    folder.run_json.write_text(json.dumps({**plain, "newer": [1, 2]}))
    assert folder.claim(config, {"weights": "open"}, RunNote(created="2027-01-01"), here, "automatic") == digest
    folder.add_processor(Processor("b" * 16, "EPYC", "two"), accept=True)
    now = json.loads(folder.run_json.read_text())
    assert now["newer"] == [1, 2]
    assert (now["created"], now["precision_choice"], len(now["processors"])) == ("2026-01-01", "chosen", 2)
    assert (now["results"], now["config"], now["digest"]) == (plain["results"], plain["config"], plain["digest"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"digest": "x"}', "expected field results"),
        ('{"results": {}, "digest": 3}', "field digest to be text"),
        ("{", "unreadable"),
    ],
)
def test_a_broken_run_record_is_refused_with_file_and_field(text: str, words: str, folder: RunFolder) -> None:
    folder.run_json.write_text(text)
    with pytest.raises(FormatError) as caught:
        folder.read_run()
    for part in (str(folder.run_json), words, "Choose another --out"):
        assert part in str(caught.value)


def test_lines_of_inputs_that_are_not_understood_are_left_out(folder: RunFolder) -> None:
    lines = [
        '{"slide_id": "a", "path": "a.svs", "mpp": 1}',
        '{"slide_id": "b", "path": 3}',
        '{"slide_id": "c", "path": "c", "z": 1}',
    ]
    folder.inputs.write_text("\n".join([*lines, '{"slide_']))
    assert {name: s.mpp for name, s in read_inputs(folder).items()} == {"a": 1.0}
