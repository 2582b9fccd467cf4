"""The review server over real HTTP: who may come in, what is served, and that marks reach the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import io
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the review page needs the extra 'review'")
pytest.importorskip("uvicorn", reason="the review page needs the extra 'review'")

from wsiseg.errors import FormatError, InputError, OutputInUseError
from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.review_run import open_review
from wsiseg.qc.runs import TailRule, find_run_outliers, grade_run, load_run


class Page:
    """A browser without eyes: keeps the cookie, speaks JSON."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.cookie = port, ""
        status, headers, _ = self.get(f"/?token={token}")
        assert status == 303
        self.cookie = headers["set-cookie"].split(";")[0]

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Cookie": self.cookie} if self.cookie else {}
        if body is not None:
            sent["Content-Type"] = "application/json"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {**sent, **(headers or {})})
        answer = connection.getresponse()
        out = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return out

    def get(self, path: str, **kw: Any) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, **kw)

    def json(self, path: str, body: Any = None) -> dict[str, Any]:
        status, _, data = self.ask("GET" if body is None else "POST", path, body)
        assert status == 200, data
        return json.loads(data)


@contextlib.contextmanager
def serving(root: Path, reviewer: str = "ann", **kw: Any) -> Iterator[Page]:
    server, slide_cache = open_review(load_run(root), reviewer, **kw)
    with server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        for _ in range(200):
            try:
                page = Page(server.port, server.token)
                break
            except ConnectionError:
                time.sleep(0.05)
        yield page
        server.stop()
        thread.join(20)
        slide_cache.close()


@pytest.fixture
def reviewed(make_run) -> Path:
    root = make_run(("a", "b", "c"))
    run = load_run(root)
    make_patches(run, 3)
    find_run_outliers(run, TailRule(min_slides=2))
    flags = pq.read_table(run.qc / "outliers.parquet").to_pylist()
    for r in flags:
        r.update(round=1 if r["slide_id"] != "c" else 0, reasons="one; two", tails="x:low")
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(flags), run.qc / "outliers.parquet")
    return root


def test_only_the_page_gets_in(reviewed: Path) -> None:
    with serving(reviewed) as page:
        outsider = Page.__new__(Page)
        outsider.port, outsider.cookie = page.port, ""
        for path in ("/", "/review.js", "/api/state", "/patch/x.png", "/slide/0", "/nothing"):
            assert outsider.get(path)[0] == 403
        assert outsider.get("/?token=wrong")[0] == 403
        assert outsider.get("/api/state?token=" + "x" * 32)[0] == 403
        outsider.cookie = page.cookie[:-2] + "xx"
        assert outsider.get("/api/state")[0] == 403
        assert page.get("/api/state", headers={"Host": f"evil.example:{page.port}"})[0] == 421
        assert page.get("/api/state", headers={"Origin": "http://evil.example"})[0] == 403
        assert page.get("/api/state", headers={"Origin": f"http://127.0.0.1:{page.port}"})[0] == 200
        assert page.ask("OPTIONS", "/api/mark")[0] == 405
        status, headers, body = page.get("/")
        assert status == 200
        assert "access-control-allow-origin" not in headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"http://" not in body
        assert b"https://" not in body
        assert outsider.get("/")[1]["x-content-type-options"] == "nosniff"
        cookie = outsider.get(f"/?token={page.cookie.split('=')[1]}")[1]["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()


def test_patches_are_served_and_marked(reviewed: Path) -> None:
    with serving(reviewed) as page:
        state = page.json("/api/state?queue=patches")
        assert (state["done"], state["total"], len(state["next"])) == (0, 9, 4)
        first = state["next"][0]
        status, headers, data = page.get(f"/patch/{first}.png")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert Image.open(io.BytesIO(data)).size == (256, 256)
        assert page.get(f"/patch/{first}.contours.png")[0] == 200
        after = page.json("/api/mark", {"queue": "patches", "item": first, "mark": "not_adequate", "seconds": 1.5})
        assert after["done"] == 1
        assert after["next"][0] == state["next"][1]
        lines = (reviewed / "qc" / "marks" / "ann.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["mark"] == "not_adequate"
        back = page.json("/api/mark", {"queue": "patches", "item": "", "mark": "undo"})
        assert (back["undone"], back["next"][0], back["done"]) == ("not_adequate", first, 0)


@pytest.mark.parametrize(
    "body",
    [
        {"queue": "patches", "item": "nope", "mark": "adequate"},
        {"queue": "x", "item": "nope", "mark": "adequate"},
        {"queue": "x", "item": "", "mark": "undo"},
        [],
        b"{",
        {"queue": "patches", "item": "FIRST", "mark": "good"},
        {"queue": "patches", "item": "FIRST", "mark": "adequate", "seconds": "long"},
        {"queue": "patches", "item": "FIRST", "mark": "adequate", "comment": "x" * 20_000},
    ],
)
def test_bad_marks_are_refused_and_leave_no_trace(reviewed: Path, body: Any) -> None:
    with serving(reviewed) as page:
        if isinstance(body, dict) and body["item"] == "FIRST":
            body = {**body, "item": page.json("/api/state")["next"][0]}
        status, _, data = page.ask("POST", "/api/mark", body)
        assert status == 400
        assert "error" in json.loads(data)
        assert (reviewed / "qc" / "marks" / "ann.jsonl").read_bytes() == b""
        assert page.ask("POST", "/api/mark", b"queue=patches", headers={"Content-Type": "text/plain"})[0] == 400


@pytest.mark.parametrize(
    "path",
    [
        "/patch/../../run.json",
        "/patch/%2e%2e%2f%2e%2e%2frun.json",
        "/patch/zzz.png",
        "/slide/99",
        "/slide/-1",
        "/slide/0/tile/0/9999/0.jpg",
        "/slide/0/tile/99/0/0.jpg",
        "/slide/0/nuclei?x=0&y=0&w=99999&h=10",
        "/slide/0/nuclei?x=a",
        "/slide/0/nuclei?x=1e400&y=0&w=1&h=1",
    ],
)
def test_what_is_not_there_is_refused(reviewed: Path, path: str) -> None:
    with serving(reviewed) as page:
        status, _, data = page.get(path)
        assert status in (400, 404)
        assert b"digest" not in data


def test_slides_are_shown_with_reasons_tiles_and_nuclei(reviewed: Path) -> None:
    with serving(reviewed) as page:
        state = page.json("/api/state?queue=slides")
        assert state["next"] == ["a", "b"]
        info = page.json(f"/slide/{state['places'][0]}")
        assert (info["width_px"], info["height_px"], info["reasons"], info["max_level"]) == (2220, 2967, ["one", "two"], 4)
        whole = Image.open(io.BytesIO(page.get(f"/slide/0/tile/{info['max_level']}/0/0.jpg")[2]))
        assert whole.size == (256, 256)
        import openslide

        with openslide.OpenSlide(load_run(reviewed).row("a").path) as slide:
            near = np.asarray(slide.read_region((256, 512), 0, (256, 256)).convert("RGB"), float)
            far = np.asarray(
                slide.read_region((0, 1024), 0, (1024, 1024)).convert("RGB").resize((256, 256), Image.Resampling.BOX), float
            )
        tile = np.asarray(Image.open(io.BytesIO(page.get("/slide/0/tile/0/1/2.jpg")[2])), float)
        assert np.abs(tile - near).mean() < 4  # JPEG
        assert np.abs(np.asarray(Image.open(io.BytesIO(page.get("/slide/0/tile/2/0/1.jpg")[2])), float) - far).mean() < 6
        data = page.get("/slide/0/nuclei?x=500&y=500&w=400&h=300")[2]
        n, v, in_view = struct.unpack_from("<III", data)
        offsets = np.frombuffer(data, "<u4", n + 1, 12)
        xy = np.frombuffer(data, "<f4", 2 * v, 12 + 4 * (n + 1)).reshape(-1, 2)
        table = pq.read_table(reviewed / "nuclei" / "a.parquet", columns=["cx", "cy"]).to_pandas()
        inside = table[(table.cx > 490) & (table.cx < 910) & (table.cy > 490) & (table.cy < 810)]
        assert n == in_view == len(inside)
        assert offsets[-1] == v == 5 * n
        assert np.allclose(np.sort(xy[0::5, 0] + 10), np.sort(inside.cx), atol=1e-3)
        done = page.json("/api/mark", {"queue": "slides", "item": "a", "mark": "unacceptable", "comment": "thick section"})
        assert (done["done"], done["next"]) == (1, ["b"])
    found = find_run_outliers(load_run(reviewed), TailRule(min_slides=2))
    assert found  # the verdicts are read without complaint
    summary = grade_run(load_run(reviewed))
    assert {g.slide_id: g.grade for g in summary.grades} == {"a": "Unacceptable", "b": "Ungraded", "c": "Ungraded"}
    assert "thick section" in (reviewed / "qc" / "wsi_quality_control_result.csv").read_text()


def test_a_restart_resumes_and_a_second_reviewer_checks(reviewed: Path) -> None:
    seen = []
    for part in (5, 4):
        with serving(reviewed) as page:
            for _ in range(part):
                item = page.json("/api/state")["next"][0]
                seen.append(item)
                page.json("/api/mark", {"queue": "patches", "item": item, "mark": "adequate"})
    assert len(set(seen)) == 9
    with serving(reviewed, "bob") as page:
        assert page.json("/api/state")["total"] == 0  # all done by ann
    with serving(reviewed, "bob", second_opinion_frac=1.0) as page:
        for i, item in enumerate(seen):
            page.json("/api/mark", {"queue": "patches", "item": item, "mark": "not_adequate" if i < 2 else "adequate"})
    summary = grade_run(load_run(reviewed))
    (agreement,) = summary.agreement
    assert (agreement.n, round(agreement.agree_frac * 9)) == (9, 7)
    assert sum(g.n_bad for g in summary.grades) == 2  # a tie is bad
    assert (reviewed / "qc" / "agreement.csv").is_file()


def test_review_works_without_the_slides(reviewed: Path, tmp_path: Path) -> None:
    table = pq.read_table(reviewed / "slides.parquet")
    place = table.schema.get_field_index("path")
    gone = [str(tmp_path / "gone.svs")] * table.num_rows
    pq.write_table(table.set_column(place, table.schema.field(place), [gone]), reviewed / "slides.parquet")
    with serving(reviewed) as page:
        item = page.json("/api/state")["next"][0]
        assert page.get(f"/patch/{item}.png")[0] == 200
        assert "gone.svs" in page.json("/slide/0")["error"]
        assert page.get("/slide/0/tile/0/0/0.jpg")[0] == 400
        assert page.json("/api/mark", {"queue": "patches", "item": item, "mark": "unsure"})["done"] == 1


def test_what_cannot_be_reviewed_is_refused(make_run, reviewed: Path) -> None:
    fresh = make_run(name="fresh")
    with pytest.raises(InputError, match="neither patches nor flagged slides"):
        open_review(load_run(fresh), "ann")
    marks = reviewed / "qc" / "marks"
    with serving(reviewed) as page:
        item = page.json("/api/state")["next"][0]
        page.json("/api/mark", {"queue": "patches", "item": item, "mark": "adequate"})
        with pytest.raises(OutputInUseError, match="Another review server"):
            open_review(load_run(reviewed), "ann")
    other = make_run(name="other", digest="f" * 16)
    make_patches(load_run(other), 1)
    (other / "qc" / "marks").mkdir(parents=True)
    shutil.copy(marks / "ann.jsonl", other / "qc" / "marks" / "ann.jsonl")
    for action in (lambda: open_review(load_run(other), "bob"), lambda: grade_run(load_run(other))):
        with pytest.raises(FormatError, match="the mark belongs to run"):
            action()
    with pytest.raises(InputError, match="no patches to grade"):
        grade_run(load_run(fresh))


def test_a_taken_port_is_reported(reviewed: Path) -> None:
    with serving(reviewed) as page, pytest.raises(InputError, match=f"Port {page.port}"):
        open_review(load_run(reviewed), "bob", port=page.port)


def test_any_slide_can_be_jumped_to_and_the_queue_narrowed(reviewed: Path) -> None:
    flags = pq.read_table(reviewed / "qc" / "outliers.parquet").to_pylist()
    for r in flags:
        r["cohort"] = {"a": "GBM", "b": "BRCA", "c": "BRCA"}[r["slide_id"]]
        r["tails"] = {"a": "n_nuclei:low foreign:high", "b": "n_nuclei:low", "c": ""}[r["slide_id"]]
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(flags), reviewed / "qc" / "outliers.parquet")
    rows = pq.read_table(reviewed / "slides.parquet")
    place = rows.schema.get_field_index("cohort")
    rows = rows.set_column(place, rows.schema.field(place), [["GBM", "BRCA", "BRCA"]])
    pq.write_table(rows, reviewed / "slides.parquet")
    with serving(reviewed) as page:
        listed = {s["slide_id"]: s for s in page.json("/api/slides")["slides"]}
        assert {i: (s["queued"], s["cohort"], s["kinds"]) for i, s in listed.items()} == {
            "a": (True, "GBM", ["nucleus count: low", "unlike the training images"]),
            "b": (True, "BRCA", ["nucleus count: low"]),
            "c": (False, "BRCA", []),
        }
        assert page.json("/api/state?queue=slides")["next"] == ["b", "a"]  # flagged ones, by cohort
        narrow = page.json("/api/state?queue=slides&kind=unlike+the+training+images")
        assert (narrow["next"], narrow["done"], narrow["total"]) == (["a"], 0, 1)
        assert page.json("/api/state?queue=slides&cohort=BRCA")["next"] == ["b"]
        assert page.json("/api/state?queue=slides&cohort=")["next"] == []
        jumped = page.json("/api/state?queue=slides&item=c")
        assert (jumped["next"][0], jumped["total"]) == ("c", 2)
        assert page.json(f"/slide/{jumped['places'][0]}")["slide_id"] == "c"
        after = page.json("/api/mark", {"queue": "slides", "item": "c", "mark": "acceptable", "cohort": "GBM"})
        assert (after["next"], after["done"], after["total"]) == (["a"], 0, 1)  # c is of no queue, and the queue is GBM's
        assert page.json("/api/state?queue=slides")["done"] == 0
        assert page.json("/api/slides")["slides"][listed["c"]["place"]]["word"] == "acceptable"
        assert page.json("/api/state?queue=slides&item=c")["words"][0] == "acceptable"
        page.json("/api/mark", {"queue": "slides", "item": "b", "mark": "unacceptable"})
        back = page.json("/api/mark", {"queue": "slides", "item": "", "mark": "undo", "cohort": "GBM"})
        assert (back["undone"], back["next"][0]) == ("unacceptable", "b")
        status, _, data = page.get("/api/state?queue=slides&item=nobody")
        assert (status, "nobody" in json.loads(data)["error"]) == (400, True)


def test_the_place_of_each_reviewer_is_kept(reviewed: Path) -> None:
    where = {"queue": "slides", "item": "b", "view": [10.5, -3.0, 0.25], "cohort": "*", "kind": "x"}
    with serving(reviewed) as page:
        assert page.json("/api/place") == {}
        page.json("/api/place", where)
        for bad in ({"view": [1, 2]}, {"view": ["a", 1, 2]}, {"view": 3}):
            assert page.ask("POST", "/api/place", bad)[0] == 400
    with serving(reviewed, "bob") as page:
        assert page.json("/api/place") == {}
    with serving(reviewed) as page:
        assert page.json("/api/place") == where
        page.json("/api/mark", {"queue": "slides", "item": "b", "mark": "acceptable"})
        assert "item" not in page.json("/api/place")  # done since: the next one comes
    (reviewed / "qc" / "marks" / "ann.place.json").write_text("{broken")
    with serving(reviewed) as page:
        assert page.json("/api/place") == {}
        assert page.json("/api/state?queue=slides")["done"] == 1  # marks do not depend on it


def test_a_link_from_the_report_leads_to_its_slide(reviewed: Path) -> None:
    run = load_run(reviewed)
    with serving(reviewed) as page:
        assert page.port == run.review_port  # what the report links to
        other_user = Page.__new__(Page)
        other_user.port, other_user.cookie = page.port, ""
        status, headers, body = other_user.get("/?slide=a%22%3E%26b")  # as a browser follows a link: without the strict cookie
        assert (status, headers["content-type"]) == (403, "text/html; charset=utf-8")
        assert b'content="0; url=/?slide=a%22%3E%26b&amp;again"' in body
        status, headers, _ = other_user.get("/?slide=a&again")
        assert (status, "refresh" in headers) == (403, False)  # asked once more, and no more
        token = page.cookie.split("=")[1]
        assert other_user.get(f"/?token={token}&slide=a%20b%2F")[1]["location"] == "/?slide=a%20b%2F"
        with serving(reviewed, "bob") as second:
            assert second.port != page.port  # another reviewer on the same computer


def test_predicted_quality_is_over_the_slide(reviewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsiseg.qc import review_run
    from wsiseg.qc.prediction import predict_run

    record = json.loads((reviewed / "run.json").read_text())
    model, *notes = review_run.quality_model(load_run(reviewed))  # of the shipped weights, as these are not known
    pixels_only = dataclasses.replace(model, facts={k: v for k, v in model.facts.items() if k != "of_nuclei"})
    with monkeypatch.context() as patch:
        patch.setattr(review_run, "quality_model", lambda run: (pixels_only, *notes))
        with serving(reviewed) as page:
            status, _, data = page.get("/slide/0/quality")  # no model of nuclei alone
            assert (status, "weights test" in json.loads(data)["error"]) == (400, True)
    record["results"]["weights"] = "research"
    (reviewed / "run.json").write_text(json.dumps(record))
    with serving(reviewed) as page:
        facts = page.json("/slide/0/quality")
        assert facts["patches"] == []  # nothing predicted yet, but the table is there
    predict_run(load_run(reviewed))
    index = {e["patch_id"]: e for e in pq.read_table(reviewed / "qc" / "patches.parquet").to_pylist()}
    predicted = pq.read_table(reviewed / "qc" / "predicted.parquet").to_pylist()
    expected = [
        [index[r["patch_id"]]["x_px"], index[r["patch_id"]]["y_px"], index[r["patch_id"]]["side_px"], r["fail_prob_run"]]
        for r in predicted
        if r["slide_id"] == "a"
    ]
    with serving(reviewed) as page:
        facts = page.json("/slide/0/quality")
        assert sorted(facts["patches"]) == sorted(expected)
        assert len(expected) == 3
        picture = np.asarray(Image.open(io.BytesIO(page.get("/slide/0/quality.png")[2])))
        assert picture.shape == (facts["h"], facts["w"], 4)
        table = pq.read_table(reviewed / "nuclei" / "a.parquet", columns=["cx", "cy"]).to_pandas()
        cells = set(zip((table.cy // facts["cell_px"]).astype(int), (table.cx // facts["cell_px"]).astype(int), strict=True))
        assert set(zip(*map(list, np.nonzero(picture[..., 3])), strict=True)) == cells
        (reviewed / "nuclei" / "b.parquet").unlink()
        status, _, data = page.get("/slide/1/quality")
        assert (status, "no table of nuclei" in json.loads(data)["error"]) == (400, True)
