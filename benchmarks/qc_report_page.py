"""The triage report in a real headless Chromium at 3 and at 5,000 slides: bytes, and milliseconds until it can be used.

Ready means that the page has drawn all it shows at first and answers to a click: the report's own mark at the end of its
script, in milliseconds since navigation. The processor time of the renderer comes from the browser (Performance.getMetrics),
for a machine that does other work at the same time. Rows, flags, grades, predictions and pictures are simulated.
Run: python benchmarks/qc_report_page.py [--slides 3 5000] [--shots FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import save
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.qc import find_outliers, grade_slides, load_quality, predicted_share
from wsiseg.qc.patches import contour_png
from wsiseg.qc.report import ReportData, ShownPatch, Thumbnail, data_uri, density_picture, render_report, worst_first
from wsiseg.qc.report_run import SHOW_ALL_SLIDES
from wsiseg.qc.rows import FlagRow
from wsiseg.rows import SlideRow
from wsiseg.schema import TRUST

COHORTS = ("BLCA", "BRCA", "CESC", "COAD", "GBM", "LUAD", "LUSC", "PAAD", "PRAD", "READ", "SKCM", "STAD", "UCEC", "UVM")


def picture(random: np.random.Generator, side: tuple[int, int]) -> str:
    """Return a JPEG of pink tissue with dark spots, of about the size that a real thumbnail has."""
    image = Image.fromarray(np.full((side[1], side[0], 3), 245, np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((side[0] * 0.1, side[1] * 0.15, side[0] * 0.9, side[1] * 0.85), fill=(232, 180, 208))
    for x, y in random.uniform(0.2, 0.8, (150, 2)) * side:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(110, 70, 150))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return data_uri(buffer.getvalue(), "image/jpeg")


def simulate(n: int) -> ReportData:
    """Return a report of ``n`` simulated slides, graded and predicted."""
    random = np.random.default_rng(0)
    cohorts = COHORTS if n > 100 else COHORTS[:1]
    rows: list[SlideRow] = []
    for i in range(n):
        mm2, density = random.uniform(20, 300), random.normal(4000, 500)
        row: dict[str, Any] = {
            "slide_id": f"TCGA-{i:04d}-01Z-00-DX1",
            "cohort": cohorts[i % len(cohorts)],
            "status": "done",
            "error": "",
        }
        row |= {"n_nuclei": int(mm2 * density), "nuclei_per_mm2": density, "tissue_mm2": mm2, "width_px": 60_000}
        row |= {"area_mean_um2": random.normal(40, 4) * (1.7 if i % 90 == 1 else 1), "area_std_um2": random.normal(14, 2)}
        row |= {"tissue_mask": "found", "outside_frac": 0.002, "outside_nuclei": 800.0, "outside_nuclei_low": 100.0}
        row |= {"outside_nuclei_high": 2500.0, "foreign_score": 1.7 if i % 90 == 1 else 0.4}
        row |= {"foreign_reasons": "sharpness 0.03 is far below that of the training images" if i % 90 == 1 else ""}
        row |= {"seconds_read": 20.0, "seconds_predict": 150.0, "seconds_separate": 18.0, "seconds_write": 2.0}
        if i % 400 == 3:
            row |= {"status": "failed", "error": "truncated file: tile 17 cannot be decoded", "n_nuclei": None}
            row |= dict.fromkeys(c.name for c in TRUST if c.name.startswith(("outside", "foreign_score")))
        rows.append(SlideRow.blank(**row))
    ids = [r.slide_id for r in rows]
    patches = {s: [f"{s}-{k}" for k in range(15)] for s in ids}
    chance = random.beta(0.5, 5, n)
    words = {p: ("adequate", "not_adequate")[int(random.random() < chance[i])] for i, s in enumerate(ids) for p in patches[s]}
    grades = grade_slides([(r.slide_id, r.cohort, r.status) for r in rows], patches, words, {}, {})
    found = find_outliers(rows)
    flags = [FlagRow(o.slide_id, o.cohort, o.status, o.round, " ".join(o.tails), "; ".join(o.reasons), o.note) for o in found]
    guess = {
        s: predicted_share(np.clip(random.normal(chance[i], 0.05, 15), 0.01, 0.99), [""] * 15, 0.08) for i, s in enumerate(ids)
    }
    model = load_quality("open")
    order = worst_first(rows, flags, grades, guess)
    cx, cy = random.normal(30_000, 9_000, (2, 20_000)).clip(0, 59_999)
    png, top = density_picture(cx, cy, (60_000, 60_000), 0.25, (300, 300))
    tissue = picture(random, (300, 300))
    thumb = Thumbnail(tissue, data_uri(png, "image/png"), top, 15.0, mask=tissue)
    angle = np.linspace(0, 2 * np.pi, 31)
    rings = [np.column_stack([x + 10 * np.cos(angle), y + 10 * np.sin(angle)]) for x, y in random.uniform(0, 256, (40, 2))]
    layer = data_uri(contour_png(np.concatenate(rings), np.arange(41) * 31, (0, 0), 3.0, 768), "image/png")
    tissue = picture(random, (256, 256))
    shown = [ShownPatch(ids[i % n], "", 40, 0.2, tissue, layer) for i in range(min(60, 15 * n))]
    return ReportData(
        f"Segmentation report: simulated cohort of {n:,}",
        f"{n:,} slides · simulated",
        rows,
        flags,
        grades,
        pictures=dict.fromkeys((ids if n <= SHOW_ALL_SLIDES else order or ids)[:200], thumb),
        patches=shown,
        n_patches=15 * n,
        estimates=guess,
        predictor={} if model is None else {**model.facts, "notes": [], "n_judged": 15 * n, "own": {}},
        provenance=[("wsiseg", "benchmark"), ("run digest", "0123456789abcdef")],
    )


def browser() -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="+", default=[3, 5000])
    parser.add_argument("--shots", type=Path, help="folder for pictures of the page and its print")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {"load_1min": os.getloadavg()[0]}
    page = browser()
    page.set_script_timeout(600)
    page.set_page_load_timeout(600)
    with tempfile.TemporaryDirectory(prefix="wsiseg-report-") as scratch:
        for n in options.slides:
            path = Path(scratch) / f"report{n}.html"
            start = time.process_time()
            path.write_bytes(render_report(simulate(n)))
            made = time.process_time() - start
            page.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            page.get(path.as_uri())
            metrics = {m["name"]: m["value"] for m in page.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
            result[f"{n}_slides"] = {
                "bytes": path.stat().st_size,
                "made_cpu_seconds": round(made, 2),
                "ready_ms": page.execute_script("return +document.body.dataset.ready"),
                "renderer_cpu_ms": round(1000 * metrics["TaskDuration"], 1),
                "script_cpu_ms": round(1000 * metrics["ScriptDuration"], 1),
            }
            if options.shots:
                shoot(page, options.shots, n)
    page.quit()
    print(json.dumps(result, indent=1))
    if not options.no_save:
        save("qc_report_page", result)


def shoot(page: Any, folder: Path, n: int) -> None:
    """Take pictures of the main sections, on the screen and as they print."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in ("overview", "predicted", "worst", "slides"):
        page.execute_script(f"document.getElementById('{section}')?.scrollIntoView()")
        time.sleep(0.5)
        page.save_screenshot(str(folder / f"report{n}-{section}.png"))
    page.set_window_size(1032, 1500)  # A4 landscape less its margins, two pages high
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for section in ("overview", "worst", "slides"):
        page.execute_script(f"document.getElementById('{section}')?.scrollIntoView()")
        page.save_screenshot(str(folder / f"report{n}-print-{section}.png"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.set_window_size(1400, 1000)


if __name__ == "__main__":
    main()
