"""Write a comparison as one HTML file that opens offline: numbers, maps and the places of largest disagreement."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg import __version__
from wsiseg.errors import first_names
from wsiseg.evaluation.compare.pictures import map_path
from wsiseg.evaluation.compare.slide import ComparedRow, SlideComparison
from wsiseg.tables import atomic_write_bytes

__all__ = ["ComparedPage", "write_page"]

SHOWN_MAPS = 24
"""Number of maps in the page, those of the slides with the lowest PQ; all maps are in ``maps/``."""

COLUMNS = (
    ("slide_id", "slide", ""), ("n_a", "nuclei A", "d"), ("n_b", "nuclei B", "d"), ("count_ratio", "A / B", "f"),
    ("area_mean_a_um2", "area A, µm²", "1"), ("area_mean_b_um2", "area B, µm²", "1"), ("area_diff_frac", "area A to B", "%"),
    ("pq", "PQ", "f"), ("f1", "F1", "f"), ("dice", "Dice", "f"), ("aji", "AJI", "f"), ("sq", "SQ", "f"),
    ("precision", "A matched", "f"), ("recall", "B matched", "f"),
)  # fmt: skip

STYLE = """
:root { --ink: #1c2026; --soft: #57606c; --line: #d5dae1; --band: #f4f6f8; --mark: #c2410c; }
body { margin: 0; color: var(--ink); font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
header { padding: 1.2rem 2rem .6rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.45rem; margin: 0; } h2 { font-size: 1.12rem; border-bottom: 2px solid var(--ink); padding-bottom: .2rem; }
main { padding: 0 2rem 3rem; max-width: 100rem; margin: 0 auto; }
.soft { color: var(--soft); max-width: 64rem; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; }
.tile { background: var(--band); border-radius: 6px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .28rem .6rem; border-bottom: 1px solid var(--line); }
th { background: var(--band); vertical-align: bottom; }
th:first-child, td:first-child, td.text { text-align: left; overflow-wrap: anywhere; }
tfoot td { font-weight: 600; border-top: 2px solid var(--ink); }
.bad { color: var(--mark); }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .3rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True, slots=True)
class ComparedPage:
    """What the page shows: the tables A and B, the slides, all nuclei together, and slides of one side alone."""

    a: Path
    b: Path
    slides: Sequence[SlideComparison]
    pooled: ComparedRow
    only_a: Sequence[str]
    only_b: Sequence[str]


def write_page(shown: ComparedPage, out: Path, picture: Path | None) -> Path:
    """Write ``compare.html`` into a folder and return its path; ``picture`` shows the worst places, if there are any."""
    done = [s for s in shown.slides if s.status == "done"]
    worst_first = sorted(done, key=lambda s: (s.scores.pq, s.slide_id))
    parts = [_header(shown, len(done)), _tiles(shown.pooled), _table(shown), _left_out(shown)]
    maps = [_figure(s, map_path(out, s.slide_id)) for s in worst_first[:SHOWN_MAPS] if map_path(out, s.slide_id).is_file()]
    if maps:
        parts.append(
            "<h2>Where they agree</h2><p class=soft>Cells of 256 µm; gray: no nuclei; dark: they disagree. "
            f"{_more(len(worst_first))}</p><div class=maps>{''.join(maps)}</div>"
        )
    if picture is not None:
        parts.append(
            "<h2>Where they disagree most</h2><p class=soft>Squares of 64 µm with the most nuclei that have no match of "
            "IoU &gt; 0.5, with the tissue on the left.</p>"
            f'<img alt="crops with the outlines of A in yellow and of B in cyan" src="{_uri(picture, "jpeg")}">'
        )
    body = "\n".join(p for p in parts if p)
    page = (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>Two segmentations compared</title><style>{STYLE}</style>{body}</main></html>\n"
    )
    atomic_write_bytes(out / "compare.html", page.encode())
    return out / "compare.html"


def _header(shown: ComparedPage, n: int) -> str:
    a, b = html.escape(str(shown.a)), html.escape(str(shown.b))
    return (
        f"<header><h1>Two segmentations of {n:,} slide{'' if n == 1 else 's'} compared</h1>"
        f"<p class=soft>A, which is scored: {a}<br>B, the reference: {b}<br>wsiseg {__version__}</p></header><main>"
    )


def _tiles(pooled: ComparedRow) -> str:
    shown = [("PQ", "pq", "f"), ("F1", "f1", "f"), ("Dice", "dice", "f"), ("AJI", "aji", "f"), ("nuclei A", "n_a", "d"),
             ("nuclei B", "n_b", "d"), ("matched", "matched", "d"), ("count A / B", "count_ratio", "f"),
             ("mean area, A against B", "area_diff_frac", "%")]  # fmt: skip
    tiles = (f"<div class=tile><b>{_cell(getattr(pooled, k), kind)}</b><span>{name}</span></div>" for name, k, kind in shown)
    return f"<h2>All nuclei together</h2><div class=tiles>{''.join(tiles)}</div>"


def _table(shown: ComparedPage) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for _, name, _ in COLUMNS)
    rows = "".join(_row(s.row()) for s in shown.slides if s.status in ("done", "empty"))
    foot = _row(shown.pooled)
    return (
        f"<h2>Slides</h2><div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        f"<tfoot>{foot}</tfoot></table></div>"
    )


def _row(row: ComparedRow) -> str:
    return "<tr>" + "".join(f"<td>{_cell(getattr(row, k), kind)}</td>" for k, _, kind in COLUMNS) + "</tr>"


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "&ndash;"
    if kind == "d":
        return f"{value:,.0f}"
    if kind == "%":
        return f"{100 * value:+.1f} %"
    return html.escape(f"{value:.3f}" if kind == "f" else f"{value:.1f}" if kind == "1" else str(value))


def _left_out(shown: ComparedPage) -> str:
    lines = [f"<span class=bad>{html.escape(s.slide_id)}: {html.escape(s.error)}</span>" for s in shown.slides if s.error]
    lines += [f"{html.escape(s.slide_id)}: {html.escape(note)}" for s in shown.slides for note in s.notes]
    for side, names in (("A", shown.only_a), ("B", shown.only_b)):
        if names:
            lines.append(f"only in {side}, not compared: {len(names):,} ({html.escape(first_names(names))})")
    return f"<h2>Notes</h2><p class=soft>{'<br>'.join(lines)}</p>" if lines else ""


def _figure(slide: SlideComparison, path: Path) -> str:
    caption = f"{html.escape(slide.slide_id)}: PQ {slide.scores.pq:.3f}"
    return f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{_uri(path, "png")}"></figure>'


def _more(n: int) -> str:
    return f"The {SHOWN_MAPS} slides of lowest PQ of {n:,}; all are in maps/." if n > SHOWN_MAPS else ""


def _uri(path: Path, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
