"""The review page in a real browser: 50 patches by keys with the server killed mid-way, and a slide with its contours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("starlette", reason="the review page needs the extra 'review'")
pytest.importorskip("uvicorn", reason="the review page needs the extra 'review'")

from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.runs import TailRule, find_run_outliers, grade_run, load_run

ROOT = Path(__file__).resolve().parents[2]
SHOTS = os.environ.get("WSISEG_SCREENSHOTS", "")


def start(root: Path, reviewer: str = "ann") -> tuple[subprocess.Popen[str], str]:
    code = "from wsiseg.cli.commands_qc import qc; qc()"
    command = [sys.executable, "-u", "-c", code, "review", str(root), "--reviewer", reviewer]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert server.stdout is not None
    line = server.stdout.readline()
    server.stdout.close()
    assert line.startswith("review page: "), line
    return server, line.split(": ", 1)[1].strip()


def wait(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def item(page: Any) -> str:
    return page.execute_script("return document.body.dataset.item || ''")


def ready(page: Any) -> bool:
    """Return whether the page shows an item whose pictures are there."""
    return bool(item(page)) and not page.execute_script("return document.body.classList.contains('waiting')")


def press(page: Any, key: str) -> None:
    page.find_element("css selector", "body").send_keys(key)


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


def open_page(page: Any, url: str) -> None:
    wait(lambda: _try(lambda: page.get(url)))
    wait(lambda: ready(page))


def _try(action: Callable[[], Any]) -> bool:
    from selenium.common.exceptions import WebDriverException

    try:
        action()
    except WebDriverException:
        return False
    return True


@pytest.fixture
def reviewed(make_run) -> Path:
    root = make_run(("a", "b", "c", "d", "e"))
    run = load_run(root)
    make_patches(run, 10)
    find_run_outliers(run, TailRule(min_slides=2))
    flags = pq.read_table(run.qc / "outliers.parquet").to_pylist()
    for r in flags[:2]:
        r.update(
            round=1,
            reasons="mean nuclear area 99.2 µm² is the highest of 100 slides; 3 tiles failed",
            tails="area_mean_um2:high",
        )
    pq.write_table(pa.Table.from_pylist(flags), run.qc / "outliers.parquet")
    return root


def test_fifty_patches_by_keys_with_a_killed_server(reviewed: Path, chromium: Any) -> None:
    server, url = start(reviewed)
    given: dict[str, str] = {}
    keys = {"a": "adequate", "s": "not_adequate", "d": "unsure"}

    def judge(key: str) -> None:
        before = wait(lambda: ready(chromium) and item(chromium))
        press(chromium, key)
        wait(lambda: item(chromium) not in ("", before))
        given[before] = keys[key]

    open_page(chromium, url)
    shot(chromium, "patches")
    for i in range(20):
        judge("aaasaad"[i % 7])
    press(chromium, "u")  # take one back, give it another mark
    taken = wait(lambda: item(chromium) in given and ready(chromium) and item(chromium))
    assert taken == list(given)[-1]
    judge("s")
    assert given[taken] == "not_adequate"
    press(chromium, "c")
    assert chromium.execute_script("return getComputedStyle(document.getElementById('layer')).visibility") == "hidden"
    shot(chromium, "patches-plain")
    press(chromium, "c")

    server.kill()
    server.wait(20)
    lost = item(chromium)
    press(chromium, "a")  # into the void
    wait(lambda: "does not answer" in chromium.find_element("id", "problem").text)
    shot(chromium, "server-gone")
    assert item(chromium) == lost  # the page does not pretend

    server, url = start(reviewed)
    open_page(chromium, url)
    assert item(chromium) == lost
    while item(chromium) != "finished":
        judge("a")
    shot(chromium, "patches-done")
    assert "50 of 50" in chromium.find_element("id", "progress").text
    server.terminate()
    server.wait(20)

    lines = [json.loads(line) for line in (reviewed / "qc" / "marks" / "ann.jsonl").read_text().splitlines()]
    assert len(lines) == 52  # 50 marks, one withdrawn, one given again
    standing = {m["item"]: m["mark"] for m in lines}
    assert standing == given
    assert len(standing) == 50
    summary = grade_run(load_run(reviewed))
    assert sum(g.n_judged + g.n_unsure for g in summary.grades) == 50
    assert sum(g.n_bad for g in summary.grades) == list(given.values()).count("not_adequate")


def test_a_slide_is_looked_at_and_judged_by_keyboard(reviewed: Path, chromium: Any) -> None:
    record = json.loads((reviewed / "run.json").read_text())
    record["results"]["weights"] = "research"  # weights that have a model for the map of predicted quality
    (reviewed / "run.json").write_text(json.dumps(record))
    server, url = start(reviewed, "bob")
    chromium.get_log("browser")  # forget what the killed server left
    open_page(chromium, url)
    press(chromium, "2")
    wait(lambda: item(chromium) == "a")
    wait(
        lambda: chromium.execute_script(
            "return [...viewer.tiles.values()].length > 0 && [...viewer.tiles.values()].every((t) => t.complete)"
        )
    )
    time.sleep(0.3)
    shot(chromium, "slide")
    press(chromium, "h")
    wait(lambda: chromium.execute_script("return viewer.heat && viewer.heat.image && viewer.heat.image.naturalWidth"))
    assert "from the nuclei alone" in chromium.find_element("id", "heat-key").text
    time.sleep(0.3)
    shot(chromium, "heat")
    press(chromium, "h")
    assert not chromium.find_element("id", "heat-key").is_displayed()
    assert chromium.find_element("id", "reasons").text.splitlines() == [
        "mean nuclear area 99.2 µm² is the highest of 100 slides",
        "3 tiles failed",
    ]
    whole = chromium.execute_script("return viewer.scale")
    for _ in range(6):
        press(chromium, "+")
    assert chromium.execute_script("return viewer.scale") > 8 * whole
    # the outlines of the view replace those of the whole slide (400) when they arrive: some, not all
    wait(lambda: 0 < chromium.execute_script("return viewer.shapes ? viewer.shapes.offsets.length - 1 : 0") < 400)
    wait(lambda: chromium.execute_script("return [...viewer.tiles.values()].every((t) => t.complete)"))
    time.sleep(0.3)
    shot(chromium, "slide-near")
    press(chromium, "m")
    box = chromium.find_element("id", "comment")
    box.send_keys("as thick as a deck")  # a, s and d are letters here
    from selenium.webdriver.common.keys import Keys

    box.send_keys(Keys.ESCAPE)
    press(chromium, "s")
    wait(lambda: item(chromium) == "b")
    press(chromium, "a")
    wait(lambda: item(chromium) == "finished")
    shot(chromium, "slides-done")
    marks = [json.loads(line) for line in (reviewed / "qc" / "marks" / "bob.jsonl").read_text().splitlines()]
    assert [(m["item"], m["mark"], m["comment"]) for m in marks] == [
        ("a", "unacceptable", "as thick as a deck"),
        ("b", "acceptable", ""),
    ]
    complaints = [e for e in chromium.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"]]
    assert not complaints
    server.terminate()
    server.wait(20)


def test_jump_filter_resume_and_the_link_from_the_report(reviewed: Path, chromium: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    server, url = start(reviewed, "eve")
    open_page(chromium, url)
    press(chromium, "?")
    keys = chromium.find_element("id", "keys")
    assert keys.is_displayed()
    shot(chromium, "keys")
    press(chromium, Keys.ESCAPE)
    assert not keys.is_displayed()
    press(chromium, "j")  # from the patches to the slides, into the field
    wait(lambda: item(chromium) == "a" and chromium.switch_to.active_element.get_attribute("id") == "jump")
    chromium.switch_to.active_element.send_keys("d", Keys.ENTER)  # d is a letter here, and a slide that nobody flagged
    wait(lambda: item(chromium) == "d" and ready(chromium))
    names = "return [...document.querySelectorAll('#names button')].map((b) => b.dataset.slide)"
    assert sorted(chromium.execute_script(names)) == ["a", "b", "c", "d", "e"]
    shot(chromium, "jumped")
    chromium.execute_script(
        "const s = document.getElementById('by-kind'); s.value = 'mean area: high'; s.dispatchEvent(new Event('change'))"
    )
    wait(lambda: item(chromium) == "a")
    assert sorted(chromium.execute_script(names)) == ["a", "b"]
    press(chromium, "s")
    wait(lambda: item(chromium) == "b" and ready(chromium))
    press(chromium, "+")
    press(chromium, "+")
    left = chromium.execute_script("return [viewer.x, viewer.y, viewer.scale]")
    stored = reviewed / "qc" / "marks" / "eve.place.json"
    wait(lambda: stored.is_file() and json.loads(stored.read_text()).get("view") == left)
    server.terminate()
    server.wait(20)

    server, url = start(reviewed, "eve")  # the next day
    open_page(chromium, url)
    wait(lambda: item(chromium) == "b")
    assert chromium.execute_script("return [viewer.x, viewer.y, viewer.scale]") == pytest.approx(left)
    assert chromium.execute_script("return document.getElementById('by-kind').value") == "mean area: high"
    page = reviewed / "report.html"
    address = url.split("/?")[0] + "/?slide=e"
    page.write_text(f'<a href="{address}">Review</a>')
    chromium.get(page.as_uri())
    chromium.find_element("css selector", "a").click()  # from a file: browsers keep the strict cookie back
    wait(lambda: _try(lambda: item(chromium)) and item(chromium) == "e")
    server.terminate()
    server.wait(20)
