"""``wsiseg evaluate`` and ``wsiseg datasets``: files named by the user -> tables of scores and facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from wsiseg.evaluate import compare_runs, evaluate_paths, evaluation_table, write_evaluation

__all__ = ["convert_dataset", "dataset_table", "score_files"]


def score_files(
    pred: Path,
    truth: Path,
    *,
    out: Path | None,
    compare: Path | None,
    images: bool,
    ignore: Path | None = None,
    scale: float = 1.0,
    origin: tuple[float, float] = (0.0, 0.0),
    vertices: Literal["auto", "edge", "center"] = "auto",
    missing: Literal["error", "empty", "skip"] = "error",
) -> tuple[list[str], list[list[str]], str]:
    """Score PRED against TRUTH; return headings and rows to print, and a sentence on the comparison with another run.

    Raises
    ------
    FormatError
        Nothing pairs, or a file is unreadable or of another size.
    """
    options: dict[str, Any] = {"ignore": ignore, "scale": scale, "origin": origin, "vertices": vertices, "missing": missing}
    scores = evaluate_paths(pred, truth, **options)
    headings, rows = evaluation_table(scores, images)
    if out is not None:
        write_evaluation(scores, out)
    sentence = ""
    if compare is not None:
        test = compare_runs(scores, evaluate_paths(compare, truth, **options))
        sentence = (
            f"PQ of {pred} minus {compare}: mean {test.mean_difference:+.4f}, median {test.median_difference:+.4f} over "
            f"{test.n} images; two-sided Wilcoxon signed-rank p = {test.p_value:.3g}"
        )
    return list(headings), [list(r) for r in rows], sentence


def dataset_table(root: Path) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of facts about the annotated sets in a folder. Raises ``FormatError`` where there is none."""
    from wsiseg.train.formats import STATS_COLUMNS, dataset_stats

    return list(STATS_COLUMNS), [[str(row[c]) for c in STATS_COLUMNS] for row in dataset_stats(root)]


def convert_dataset(source: Path, out: Path, format_name: str, mpp: float | None, licence: str, name: str) -> list[str]:
    """Convert a public set to the unified layout; return lines that say what was done.

    Raises
    ------
    FormatError
        The source is of no known format, or broken.
    """
    from wsiseg.train.formats import convert

    done = convert(format_name, source, out, mpp=mpp, licence=licence, name=name)
    lines = [f"{done.format}: {done.n_images} images, {done.n_nuclei} nuclei -> {done.out}"]
    if done.empty_images:
        lines.append(f"without nuclei: {done.empty_images}")
    return lines + [str(note) for note in done.notes]
