"""The report: one file, nothing from outside, hostile names harmless, right at 3 and at 5,000 slides in a real browser."""

from __future__ import annotations

import base64
import csv
import gzip
import html.parser
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsiseg.qc import MarkLog, ShareEstimate, TailRule, find_outliers, grade_slides
from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.report import ReportData, Thumbnail, density_picture, render_report, worst_first
from wsiseg.qc.report_run import MASK_RGB, outlined, write_report
from wsiseg.qc.rows import FlagRow
from wsiseg.qc.runs import find_run_outliers, load_run
from wsiseg.qc.shown_paths import shorten_paths, shorten_row_paths
from wsiseg.read import TissueMask
from wsiseg.rows import SlideRow
from wsiseg.schema import DECISIONS


def rows_of(n: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    cohorts = ("BRCA", "GBM", "LUAD") if n > 10 else ("BRCA",)
    return [
        {
            "slide_id": f"TCGA-{i:04d}-01Z-00-DX1.0B5F",
            "cohort": cohorts[i % len(cohorts)],
            "status": "done",
            "n_nuclei": int(random.integers(10_000, 900_000)),
            "nuclei_per_mm2": random.normal(4000, 500),
            "tissue_mm2": 90.0,
            "area_mean_um2": random.normal(40, 4),
            "area_std_um2": random.normal(14, 2),
            "seconds_read": 1.0,
            "seconds_predict": 9.0,
            "error": "",
        }
        for i in range(n)
    ]


def slide_rows(rows: list[dict[str, Any]]) -> list[SlideRow]:
    return [SlideRow.blank(**r) for r in rows]


def report_of(n: int, **given: Any) -> bytes:
    rows = slide_rows(rows_of(n))
    outliers = [
        FlagRow(o.slide_id, o.cohort, o.status, o.round, " ".join(o.tails), "; ".join(o.reasons), o.note)
        for o in find_outliers(rows)
    ]
    return render_report(ReportData("Report", f"{n} slides", rows, outliers, **given))


def data_of(page: bytes) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.decode(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


class Links(html.parser.HTMLParser):
    """Every address that the file could fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v for k, v in attrs if k in ("src", "href", "action", "srcset", "data") and v]


def test_nothing_is_fetched_from_outside() -> None:
    page = report_of(20, review="http://127.0.0.1:23456")
    links = Links()
    links.feed(page.decode())
    assert links.found == []
    assert "default-src 'none'" in page.decode()
    outside = set(re.findall(r"https?://[^\s\"'<>]+", page.decode()))
    assert outside == {"http://www.w3.org/2000/svg", "http://127.0.0.1:23456"}  # a name, and the review page of this computer
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page.decode())


def test_every_slide_is_in_the_data_and_numbers_survive() -> None:
    data = data_of(report_of(50))
    assert len(data["rows"]["slide_id"]) == 50
    for value, row in zip(data["rows"]["area_mean_um2"], rows_of(50), strict=True):
        assert value == pytest.approx(row["area_mean_um2"], rel=1e-5)
    assert data["seconds"]["predict"] == pytest.approx(450)


def test_hostile_names_cannot_leave_the_data() -> None:
    rows = rows_of(3)
    rows[0].update(
        slide_id="</script><script>alert(1)</script>",
        cohort="<!-- @@JS@@",
        error="&<>\"'",
        area_mean_um2=float("nan"),
        nuclei_per_mm2=float("inf"),
    )
    page = render_report(ReportData("<b>title</b>", "", slide_rows(rows)))
    assert page.decode().count("<script") == 2
    assert "<title>&lt;b&gt;" in page.decode()
    data = data_of(page)
    assert data["rows"]["slide_id"][0] == rows[0]["slide_id"]
    assert data["rows"]["area_mean_um2"][0] is None
    assert data["rows"]["cohort"][0] == "<!-- @@JS@@"


def test_worst_come_first() -> None:
    rows = rows_of(6)
    rows[5]["status"] = "failed"
    outliers = [FlagRow(rows[i]["slide_id"], "", "done", r, "x", "", "") for i, r in enumerate((0, 2, 1, 0, 0, 1))]
    words = {"p3": "not_adequate", "q3": "adequate"}
    patches = {rows[3]["slide_id"]: ["p3", "q3"]}
    grades = grade_slides(
        [(r["slide_id"], "", r["status"]) for r in rows], patches, words, {rows[4]["slide_id"]: "unacceptable"}, {}
    )
    order = worst_first(slide_rows(rows), [o for o in outliers if o.round], grades)
    assert order == [rows[i]["slide_id"] for i in (5, 4, 3, 2, 1)]
    surely, perhaps = ShareEstimate(0.6, 0.3, 0.9, 15, 0), ShareEstimate(0.6, 0.1, 0.9, 15, 0)
    guess = {rows[0]["slide_id"]: surely, rows[1]["slide_id"]: perhaps}
    order = worst_first(slide_rows(rows), [o for o in outliers if o.round], grades, guess)
    assert order == [rows[i]["slide_id"] for i in (5, 4, 3, 0, 2, 1)]


def test_density_map_counts_what_is_there() -> None:
    cx, cy = np.full(40, 150.0), np.full(40, 50.0)
    png, top = density_picture(cx, cy, (200, 100), 0.5, (100, 200))
    image = np.asarray(Image.open(io.BytesIO(png)).convert("L"), int)
    assert image.shape == (100, 200)
    assert top == pytest.approx(40 / (4 * 4 * 0.25e-6))  # one cell of 4 px at 0.5 um
    y, x = np.unravel_index(image.argmin(), image.shape)
    assert abs(x - 150) <= 4
    assert abs(y - 50) <= 4
    assert (image < 250).sum() == 16


def test_report_of_a_run_with_and_without_qc(make_run, tmp_path: Path) -> None:
    root = make_run(("a", "b", "c"))
    run = load_run(root)
    bare = data_of(write_report(run).read_bytes())
    assert (bare["has_outliers"], bare["has_grades"], bare["patches"]) == (False, False, [])
    assert set(bare["pictures"]) == {"a", "b", "c"}
    find_run_outliers(run, TailRule(min_slides=2))
    make_patches(run, 2)
    log = MarkLog(run.marks, "ann", run.digest)
    import pyarrow.parquet as pq

    ids = pq.read_table(run.qc / "patches.parquet")["patch_id"].to_pylist()
    log.append("patches", ids[0], "adequate")
    log.append("patches", ids[3], "not_adequate")
    log.append("slides", "b", "unacceptable", "pen over the tumor")
    log.close()
    second = MarkLog(run.marks, "bob", run.digest, "second")
    second.append("patches", ids[0], "adequate")
    second.append("patches", ids[3], "not_adequate")
    second.close()
    full = data_of(write_report(run, tmp_path / "out" / "r.html", max_patches=4).read_bytes())
    assert full["has_grades"]
    assert [(a["first"], a["second"], a["n"], a["kappa"]) for a in full["agreement"]] == [("ann", "bob", 2, 1.0)]
    assert (len(full["patches"]), full["patches"][0]["word"], full["n_patches"]) == (4, "not_adequate", 6)
    assert full["rows"]["verdict"][1] == "unacceptable"
    assert (bare["has_estimates"], full["has_estimates"]) == (False, True)
    assert full["predictor"]["held_out"]["calibration"]
    assert 0 < full["patches"][0]["fail_prob"] < 1
    for low, share, high in zip(*(full["rows"][f"estimate{k}"] for k in ("_low", "", "_high")), strict=True):
        assert 0 <= low <= share <= high <= 1
    assert full["rows"]["comment"][1] == "pen over the tumor"
    assert full["pictures"]["a"]["thumb"].startswith("data:image/jpeg;base64,")
    assert dict(map(tuple, full["provenance"]))["run digest"] == run.digest


def test_report_without_the_slide_files(make_run, tmp_path: Path) -> None:
    run = load_run(make_run(("a",), path=str(tmp_path / "gone.svs")))
    page = write_report(run).read_bytes()
    assert "gone.svs does not exist" in data_of(page)["pictures"]["a"]["error"]
    for text in (page.decode(), (run.qc / "report.decisions.csv").read_text()):
        assert str(tmp_path) not in text  # a reader of another machine has no such folder


def test_paths_of_this_machine_do_not_leave_it(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    for text, expected in (
        ("Slide a: /data/my slides/a b.svs is truncated.", "Slide a: a b.svs is truncated."),
        (f"{run}/nuclei/a.parquet: damaged", "my run/nuclei/a.parquet: damaged"),
        ("cannot open '/mnt/x y/z.svs' (errno 2)", "cannot open 'z.svs' (errno 2)"),
        ("/opt/w/net.safetensors, line 3", "net.safetensors, line 3"),
        (r"C:\\scans\\k\\b.ndpi not found".replace("\\\\", "\\"), "b.ndpi not found"),
        ("s3://bucket/k/a.svs?X-Amz-Signature=abc gave 403", "s3://bucket/k/a.svs gave 403"),
        ("https://me:secret@host/a.svs", "https://host/a.svs"),
        ("1/2 of 4,000 nuclei/mm2, 3 µm/px and --path-map FROM=TO", "1/2 of 4,000 nuclei/mm2, 3 µm/px and --path-map FROM=TO"),
    ):
        assert shorten_paths(text, run, ("/data/my slides/a b.svs",)) == expected
    whole = "/data/my slides/a b.svs"
    row = shorten_row_paths(SlideRow.blank("s", "failed", path=whole, error=f"{whole}: no", n_nuclei=3), run, whole)
    assert row == SlideRow.blank("s", "failed", path="a b.svs", error="a b.svs: no", n_nuclei=3)


def test_the_mask_is_drawn_at_its_position() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 5:15] = 1
    rgb = np.full((100, 200, 3), 100, np.uint8)
    found = outlined(rgb, TissueMask(mask, 40.0, 40.0), (800, 400))  # 4 level-0 px a picture px, 10 picture px a mask px
    assert (found[30:70, 60:140] == 100).all()  # tissue as it is
    assert (found[:15] == 178).all()  # outside: half as dark
    line = (found == MASK_RGB).all(axis=2)
    y, x = np.nonzero(line)
    assert (y.min(), y.max(), x.min(), x.max()) == (19, 80, 49, 150)
    shifted = outlined(rgb, TissueMask(mask, 40.0, 40.0, 80.0, 0.0), (800, 400))
    assert (np.nonzero((shifted == MASK_RGB).all(axis=2))[1].min()) == 69  # its frame begins 20 picture px further right


def test_all_decisions_are_in_one_table(make_run) -> None:
    import pyarrow.parquet as pq

    run = load_run(make_run(("a", "b", "c"), outside_frac=0.01, foreign_score=1.5, foreign_reasons="hue; blur"))
    find_run_outliers(run, TailRule(min_slides=2))
    make_patches(run, 2)
    index = pq.read_table(run.qc / "patches.parquet").to_pylist()
    for who, word in (("ann", "adequate"), ("bob", "not_adequate")):
        log = MarkLog(run.marks, who, run.digest)
        log.append("patches", index[0]["patch_id"], word)
        log.append("slides", "b", "unacceptable", f"pen, says {who}; twice")
        log.close()
    page = data_of(write_report(run).read_bytes())
    data = (run.qc / "report.decisions.csv").read_bytes()
    assert gzip.decompress(base64.b64decode(page["decisions"])) == data
    lines = list(csv.DictReader(io.StringIO(data.decode())))
    assert [line["slide_id"] for line in lines if line["kind"] == "slide"] == ["a", "b", "c"]
    patches = {line["patch_id"]: line for line in lines if line["kind"] == "patch"}
    assert {p: (int(line["x_px"]), line["slide_id"]) for p, line in patches.items()} == {
        e["patch_id"]: (e["x_px"], e["slide_id"]) for e in index
    }
    judged = patches[index[0]["patch_id"]]
    assert (judged["decision"], judged["reviews"]) == ("not_adequate", "ann: adequate; bob: not_adequate")  # a tie is bad
    assert all(0 < float(line["fail_prob"]) < 1 for line in patches.values())
    b = lines[1]
    assert (b["decision"], b["grade"]) == ("unacceptable", "Unacceptable")
    assert b["comments"] == "ann: pen, says ann; twice; bob: pen, says bob; twice"
    assert (b["foreign_score"], b["foreign_reasons"], b["outside_frac"]) == ("1.5", "hue; blur", "0.01")
    flags = {r["slide_id"]: r for r in pq.read_table(run.qc / "outliers.parquet").to_pylist()}
    assert all(line["flags"] == flags[line["slide_id"]]["tails"] for line in lines if line["kind"] == "slide")
    assert set(lines[0]) == {c.name for c in DECISIONS}


def open_report(page: Any, path: Path) -> float:
    page.set_window_size(1400, 1000)
    start = time.monotonic()
    page.get(path.as_uri())
    assert page.execute_script("return document.body.dataset.ready")
    return time.monotonic() - start


def test_predicted_quality_shows_its_calibration(tmp_path: Path, chromium: Any) -> None:
    ids = [r["slide_id"] for r in rows_of(30)]
    guess = {s: ShareEstimate(0.01 * i, 0.0, 0.02 * i, 15, 3) for i, s in enumerate(ids)}
    held = {"patients": 12, "patches": 300, "auc": 0.876, "brier": 0.1, "calibration_error": 0.05}
    held["calibration"] = [[0.1, 0.12, 150], [0.8, 0.7, 150]]
    facts = {"network": "open", "licence": "as it is", "held_out": held, "notes": ["Beware."], "n_judged": 90, "own": {}}
    path = tmp_path / "report.html"
    corrected = {"All": ShareEstimate(0.123, 0.1, 0.15, 450, 90)}
    path.write_bytes(report_of(30, estimates=guess, predictor=facts, corrected=corrected))
    open_report(chromium, path)
    text = chromium.find_element("id", "predicted").text
    for part in ("Beware.", "0.876", "12 patients", "12.3 % (95 % 10.0 to 15.0 %), 90 of 450 judged", "as it is"):
        assert part in text
    assert chromium.execute_script("return document.querySelectorAll('#predicted-plots circle').length") == 2
    head = chromium.execute_script("return [...document.querySelectorAll('#slide-table th button')].map((b) => b.textContent)")
    column = head.index("Estimated bad %")
    chromium.execute_script(f"document.querySelectorAll('#slide-table th button')[{column}].click()")
    cells = chromium.execute_script(
        "return [...document.querySelectorAll('#slide-table tbody tr')[0].cells].map((c) => c.textContent)"
    )
    assert cells[0] == ids[29]
    assert cells[column] == "29 (0\N{EN DASH}58)"
    wide = chromium.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0  # nothing hangs out of the page


def png(side: int = 40) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 200, np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_six_cards_are_printed_a_page(tmp_path: Path, chromium: Any) -> None:
    pages = {}
    for n in (12, 24):
        shown = {r["slide_id"]: Thumbnail(png(), png(), 10.0, 5.0, mask=png()) for r in rows_of(n)}
        path = tmp_path / f"{n}.html"
        path.write_bytes(report_of(n, pictures=shown))
        open_report(chromium, path)
        assert chromium.execute_script("return document.querySelectorAll('.card').length") == n
        pdf = chromium.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
        pages[n] = len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(pdf["data"])))
    assert pages[24] - pages[12] == 2


def test_a_card_shows_mask_reasons_and_the_way_to_the_review(tmp_path: Path, chromium: Any) -> None:
    rows = rows_of(8)
    rows[0] |= {"tissue_mask": "found", "outside_frac": 0.125, "outside_nuclei_low": 0.0}
    rows[0] |= {"n_nuclei": 700, "outside_nuclei": 100.0, "outside_nuclei_high": 300.0}
    rows[0] |= {"foreign_score": 2.5, "foreign_reasons": "brown stain; blurred"}
    rows[1] |= {"tissue_mask": "all", "outside_frac": None}
    shown = {r["slide_id"]: Thumbnail(png(30), png(), 10.0, 5.0, mask=png(50)) for r in rows}
    path = tmp_path / "report.html"
    content = b"kind,slide_id\nslide,a\n"
    data = ReportData(
        "Report",
        "",
        slide_rows(rows),
        pictures=shown,
        review="http://127.0.0.1:23456",
        decisions=content,
        decisions_file="r.csv",
    )
    path.write_bytes(render_report(data))
    open_report(chromium, path)
    first, second, third = (chromium.find_element("css selector", f"[data-slide='{r['slide_id']}']") for r in rows[:3])
    assert "Nuclei outside the mask: 12.50 (0.00\N{EN DASH}30.00) %" in first.text
    assert "unlike the training images (score 2.5, flagged above 1): brown stain, blurred" in first.text
    assert "no mask used" in second.text
    assert "Nuclei outside the mask: not measured" in third.text  # a run of an earlier version
    link = first.find_element("css selector", "a").get_attribute("href")
    assert link == f"http://127.0.0.1:23456/?slide={rows[0]['slide_id']}"
    visible = (
        "return [...document.querySelectorAll('.card .layers img')].filter((i) => i.offsetWidth).map((i) => i.naturalWidth)"
    )
    assert set(chromium.execute_script(visible)) == {40, 50}  # the mask, and the map of density
    chromium.find_element("id", "masks").click()
    assert set(chromium.execute_script(visible)) == {40, 30}
    # all pictures are there without scrolling, for who captures the page as a whole
    assert chromium.execute_script(
        "return [...document.images].every((i) => i.complete && i.naturalWidth && i.loading !== 'lazy')"
    )
    chromium.execute_script("document.getElementById('decisions').click()")
    end = time.monotonic() + 20
    href = "return document.getElementById('decisions').href"
    while not chromium.execute_script(href).startswith("blob:") and time.monotonic() < end:
        time.sleep(0.05)
    text = chromium.execute_async_script(
        "const done = arguments[0], r = new FileReader(); r.onload = () => done(r.result);"
        "const packed = Uint8Array.from(atob(D.decisions), (c) => c.charCodeAt(0));"
        "const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));"
        "new Response(plain).blob().then((b) => r.readAsText(b))"
    )
    assert text.encode() == content
    assert chromium.execute_script(href).startswith("blob:")


@pytest.mark.parametrize("n", [3, 5000])
def test_it_opens_sorts_and_filters_in_a_browser(tmp_path: Path, chromium: Any, n: int) -> None:
    path = tmp_path / "report.html"
    picture = Thumbnail(error="No picture: the file is gone")
    path.write_bytes(report_of(n, pictures={r["slide_id"]: picture for r in rows_of(3)}))
    chromium.get_log("browser")
    open_report(chromium, path)
    ready_ms = chromium.execute_script("return +document.body.dataset.ready")
    assert ready_ms < 3000 * 4  # 3 s on a machine of its own; the test machine is shared
    count = "return document.querySelectorAll('#slide-table tbody tr').length"
    assert chromium.execute_script(count) == min(n, 100)  # lazy
    first = "return document.querySelector('#slide-table tbody td').textContent"
    head = chromium.execute_script("return [...document.querySelectorAll('#slide-table th button')].map((b) => b.textContent)")
    column = [h.startswith("Nuclei") for h in head].index(True)
    chromium.execute_script(f"document.querySelectorAll('#slide-table th button')[{column}].click()")
    assert chromium.execute_script(first) == max(rows_of(n), key=lambda r: r["n_nuclei"])["slide_id"]
    chromium.execute_script(
        "const f = document.getElementById('find'); f.value = '0002-01z'; f.dispatchEvent(new Event('input'))"
    )
    assert chromium.execute_script(count) == 1
    assert "0002" in chromium.execute_script(first)
    plots = chromium.execute_script("return [...document.querySelectorAll('#plots svg path')].length")
    flagged = sum(o.flagged for o in find_outliers(slide_rows(rows_of(n))))
    assert plots >= 4
    assert chromium.execute_script("return document.querySelectorAll('#plots svg title').length") == 4 * flagged
    if n > 100:
        chromium.execute_script("const f = document.getElementById('find'); f.value = ''; f.dispatchEvent(new Event('input'))")
        chromium.execute_script("const t = document.getElementById('slide-table'); t.scrollTop = t.scrollHeight")
        end = time.monotonic() + 30
        while chromium.execute_script(count) <= 100 and time.monotonic() < end:
            time.sleep(0.05)
        assert chromium.execute_script(count) > 100
    assert [e for e in chromium.get_log("browser") if e["level"] == "SEVERE"] == []
