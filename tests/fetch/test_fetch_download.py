"""Download from a web server with dropped, cut, delayed and wrong answers: the right bytes, or an error with the reason."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import os
import random
import re
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.fetch.gdc_server import GdcServer
from wsiseg.errors import FetchDamagedError, FetchDeniedError, FetchError, FetchMissingError, FetchUnreachableError
from wsiseg.fetch import FetchOptions, FetchStopped, StagedSlide, Wanted, fetch_to_staging, find_staged, shown, staged_sizes
from wsiseg.fetch import download as download_module
from wsiseg.fetch.staged import NoSpace, safe_name
from wsiseg.fetch.web import retry_after_s

DATA = random.Random(1).randbytes(3_000_017)  # the same in every process: it names tests
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "FIRST_PAUSE_S", 0.01)


def fetched(
    server: GdcServer, root: Path, *, md5: str = MD5, size: int = len(DATA), patience_s: float = 30.0, **more: object
) -> StagedSlide:
    want = Wanted(server.put("one", DATA), "one.svs", size, md5)
    return fetch_to_staging(want, "one", root, FetchOptions(4, patience_s), **more)  # type: ignore[arg-type]


def test_the_bytes_come_in_ranges_over_several_connections_and_only_once(server: GdcServer, tmp_path: Path) -> None:
    got = fetched(server, tmp_path / "stage")
    assert got.path == tmp_path / "stage/one/one.svs"
    assert got.path.read_bytes() == DATA
    assert got.version == MD5
    assert len({e["range"] for e in server.log()}) > 4
    assert server.sent("one") == len(DATA) + 1, "and the one byte by which the size was asked"
    n = len(server.log())
    assert fetched(server, tmp_path / "stage") == got
    assert len(server.log()) == n, "what is there is not asked for again"
    assert sorted(p.name for p in got.path.parent.iterdir()) == ["fetched.json", "one.svs"]


@pytest.mark.parametrize(
    "trouble",
    [["503", "429 0", "500"], ["drop", "drop"], ["cut 1", "cut 100000", "cut 5", "cut 77777"], ["429 1"], ["wrong"] * 17],
    ids=["busy", "dropped", "cut", "asked to wait", "wrong bytes"],
)
def test_what_may_be_better_later_is_tried_again(trouble: list[str], server: GdcServer, tmp_path: Path) -> None:
    server.rules(one=trouble)
    assert fetched(server, tmp_path / "stage").path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("trouble", "kind", "says"),
    [
        ("404", FetchMissingError, "HTTP 404"),
        ("410", FetchMissingError, "HTTP 410"),
        ("401", FetchDeniedError, "HTTP 401, no token was given"),
        ("403", FetchDeniedError, "HTTP 403"),
        ("418", FetchError, "HTTP 418"),
        ("429 99999", FetchUnreachableError, "requests 99999 s"),
        ("503", FetchUnreachableError, "HTTP 503"),
        ("drop", FetchUnreachableError, "no byte for"),
        ("wrong", FetchDamagedError, f"expected MD5 {MD5}"),
    ],
)
def test_what_will_not_be_better_is_an_error_with_address_and_reason(
    trouble: str, kind: type[FetchError], says: str, server: GdcServer, tmp_path: Path
) -> None:
    server.rules(one=[f"{trouble} always"])
    with pytest.raises(kind, match=says) as raised:
        fetched(server, tmp_path / "stage", patience_s=0.2)
    assert f"{server.address}/data/one" in str(raised.value)
    assert find_staged(Wanted(f"{server.address}/data/one"), "one", tmp_path / "stage") is None


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("503", r"HTTP 503.*; no byte for \d+ s, trying again"), ("drop", "no byte for"), ("429 1", "requests a pause of 1 s")],
)
def test_a_server_that_gives_no_byte_is_reported_while_it_is_waited_for(
    trouble: str, message: str, server: GdcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(download_module, "REPORT_WAIT_S", 0.5)
    server.rules(one=[trouble] * 3)
    messages: list[str] = []
    want = Wanted(server.put("one", DATA))
    assert fetch_to_staging(want, "one", tmp_path / "stage", FetchOptions(on_wait=messages.append)).path.read_bytes() == DATA
    assert messages
    assert all(re.search(message, m) and m.startswith(f"{want.address}: ") for m in messages)
    assert len(messages) <= 3


def test_another_size_than_the_manifest_states_is_an_error_before_a_byte_is_fetched(server: GdcServer, tmp_path: Path) -> None:
    with pytest.raises(FetchDamagedError, match=f"expected 5 bytes by the manifest, but the server has {len(DATA)}"):
        fetched(server, tmp_path / "stage", size=5)
    assert server.sent("one") == 1


def test_a_fetch_that_was_stopped_continues_where_it_was(server: GdcServer, tmp_path: Path) -> None:
    asked = itertools.count()
    with pytest.raises(FetchStopped):
        fetched(server, tmp_path / "stage", way=(_nothing(), lambda: next(asked) > 12))
    before = server.sent("one")
    there = staged_sizes(tmp_path / "stage")["one"]
    assert 0 < there < len(DATA)
    assert fetched(server, tmp_path / "stage").path.read_bytes() == DATA
    assert server.sent("one") - before < 0.98 * len(DATA), "of the second fetch only what was missing"


def test_a_file_that_changed_in_between_is_fetched_from_its_start(server: GdcServer, tmp_path: Path) -> None:
    asked = itertools.count()
    with pytest.raises(FetchStopped):
        fetched(server, tmp_path / "stage", way=(_nothing(), lambda: next(asked) > 12))
    other = DATA[::-1] + b"!"
    server.put("one", other)
    want = Wanted(f"{server.address}/data/one", "one.svs", len(other), hashlib.md5(other).hexdigest())
    assert fetch_to_staging(want, "one", tmp_path / "stage", FetchOptions()).path.read_bytes() == other


def test_a_server_without_ranges_is_read_in_one_stream(server: GdcServer, tmp_path: Path) -> None:
    (server.folder / "no-ranges").touch()
    server.rules(one=["503", "cut 1000000", "cut 5"])
    assert fetched(server, tmp_path / "stage").path.read_bytes() == DATA


def test_without_a_checksum_the_size_decides(server: GdcServer, tmp_path: Path) -> None:
    assert fetched(server, tmp_path / "stage", md5="", size=0).path.read_bytes() == DATA


def test_a_slide_larger_than_the_room_is_not_begun(server: GdcServer, tmp_path: Path) -> None:
    with pytest.raises(NoSpace) as raised:
        fetched(server, tmp_path / "stage", room_bytes=len(DATA) - 1)
    assert raised.value.size_bytes == len(DATA)
    assert server.sent("one") == 1


def test_the_token_goes_to_the_gdc_alone_and_is_in_no_message(
    server: GdcServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "secret-" + os.urandom(8).hex()
    (server.folder / "token").write_text(token)
    with pytest.raises(FetchDeniedError, match="--gdc-token-file"):
        fetched(server, tmp_path / "stage")
    (tmp_path / "token").write_text(token + "\n")
    want = Wanted(server.put("one", DATA), "one.svs", len(DATA), MD5)
    options = FetchOptions(token_file=str(tmp_path / "token"))
    assert fetch_to_staging(want, "one", tmp_path / "stage", options).path.read_bytes() == DATA
    (tmp_path / "token").write_text(token + "-expired")
    with pytest.raises(FetchDeniedError, match="the token given was refused") as raised:
        fetch_to_staging(want, "two", tmp_path / "stage", options)
    assert token not in str(raised.value)
    (tmp_path / "token").write_text(f"{token} {token}")
    with pytest.raises(FetchError, match="one line with the token") as raised:
        fetch_to_staging(want, "two", tmp_path / "stage", options)
    assert token not in str(raised.value)
    monkeypatch.setenv("GDC_TOKEN", token)
    assert fetch_to_staging(want, "two", tmp_path / "stage", FetchOptions()).path.read_bytes() == DATA
    n = len(server.log())
    monkeypatch.setenv("WSISEG_GDC_API", "https://api.gdc.cancer.gov")
    with pytest.raises(FetchDeniedError):
        fetch_to_staging(want, "three", tmp_path / "stage", FetchOptions())
    assert not any(e["token"] for e in server.log()[n:]), "another server gets no token"


def test_addresses_are_shown_without_their_secrets() -> None:
    signed = "https://me:pw@host/a/b.svs?X-Amz-Signature=abc&X-Amz-Date=1&id=7&sig=xyz#top"
    assert shown(signed) == "https://host/a/b.svs?X-Amz-Signature=***&X-Amz-Date=***&id=7&sig=***"
    assert shown("/data/a.svs?sig=x") == "/data/a.svs?sig=x", "a path is no address"


def test_a_server_may_ask_to_wait_in_seconds_or_until_a_date() -> None:
    now = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    then = now + datetime.timedelta(seconds=90)
    assert retry_after_s("120") == 120
    assert retry_after_s(format_datetime(then, usegmt=True), now) == 90
    assert retry_after_s(format_datetime(now - datetime.timedelta(days=1), usegmt=True), now) == 0
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", ".", "", ".hidden", "a/b.svs", "x" * 300 + ".svs", "a\x00b\n.svs"])
def test_a_name_never_leads_out_of_its_folder(name: str, tmp_path: Path) -> None:
    safe = safe_name(name)
    (tmp_path / safe).write_bytes(b"")
    assert (tmp_path / safe).resolve().parent == tmp_path.resolve()
    assert not safe.startswith(".")


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
