"""``wsiseg qc predict``: the probability that each patch of a run is bad, and each slide's estimated share of bad patches."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError, WsisegError
from wsiseg.log import log
from wsiseg.qc.estimate import ShareEstimate, corrected_share, odds_weight, order_key, predicted_share, reached
from wsiseg.qc.marks import PATCH_MARKS, Mark, decide, read_all_marks
from wsiseg.qc.patch_features import FEATURES
from wsiseg.qc.patch_pictures import nuclei_of_patch, patch_segmenter_of, picture_features
from wsiseg.qc.patches import read_picture
from wsiseg.qc.predict_quality import (
    FALLBACK,
    MIN_JUDGED,
    QualityModel,
    apply_calibration,
    auc,
    brier,
    calibration,
    calibration_error,
    load_quality,
    recalibrate,
)
from wsiseg.qc.release import csv_bytes
from wsiseg.qc.review.queues import in_share, parse_share
from wsiseg.qc.rows import EstimateRow, OrderRow, PatchRow, PredictedRow, read_features, stored_rows, write_features
from wsiseg.qc.runs import QcRun
from wsiseg.schema import PREDICTED, PREDICTED_SLIDES, REVIEW_ORDER
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.records import write_rows

__all__ = ["Prediction", "predict_run", "quality_model", "stored_prediction", "suspects_first"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted quality of a run.

    Attributes
    ----------
    fail_prob
        Probability, 0 to 1, that each patch is bad; calibrated to this run's reviewers if they judged enough patches.
    slides
        Estimated share of bad patches of each slide with patches.
    cohorts
        Share of bad patches of each cohort, corrected for a suspects-first review; only cohorts with enough judged patches.
    facts
        Description of the model for the report: network, licence, notes, held-out figures; ``own`` has the figures against
        this run's reviewers (patches, auc, brier, calibration_error, calibration, offset, slope) if they judged enough patches.
    failed
        (patch id, reason) of patches whose features could not be computed.
    """

    fail_prob: Mapping[str, float]
    slides: Mapping[str, ShareEstimate]
    cohorts: Mapping[str, ShareEstimate]
    facts: Mapping[str, Any]
    failed: Sequence[tuple[str, str]] = ()


def predict_run(run: QcRun, *, progress: Callable[[int, int], None] | None = None) -> Prediction:
    """Predict the quality of all patches of a run and write the tables; compute missing features first.

    Only stored pictures and polygon tables are read; the slide files are not needed.

    Parameters
    ----------
    progress
        Called with (slides done, slides) while features are computed.

    Raises
    ------
    InputError
        The run has no patches.
    FormatError
        A table or marks file is damaged or of another run.
    """
    index = [e for e in stored_rows(PatchRow, run.qc / "patches.parquet") if e.file]
    if not index:
        raise InputError(f"Run {run.folder.root} has no patches to predict. Run `wsiseg qc patches` first.")
    features, failed = _features(run, index, progress)
    known = [e for e in index if e.patch_id in features]
    prediction = _predict(run, known, np.array([features[e.patch_id] for e in known]).reshape(-1, len(FEATURES)), failed)
    rows = [
        EstimateRow(s, run.row(s).cohort, e.n_patches, e.n_judged, e.share, e.low, e.high)
        for s, e in sorted(prediction.slides.items())
    ]
    write_rows(run.qc / "predicted_slides.parquet", PREDICTED_SLIDES, rows)
    text = csv_bytes([c.name for c in PREDICTED_SLIDES], [dataclasses.astuple(r) for r in rows])
    atomic_write_bytes(run.qc / "predicted_slides.csv", text)
    return prediction


def stored_prediction(run: QcRun) -> Prediction | None:
    """Return the prediction from stored features and the marks given so far; None if there are no stored features."""
    index = {e.patch_id: e for e in stored_rows(PatchRow, run.qc / "patches.parquet") if e.file}
    rows = {i: values for i, values in read_features(run.qc / "features.parquet").items() if i in index}
    if any(value is None for values in rows.values() for value in values):
        log.warning(
            "%s was written by an earlier version, with fewer features, so no prediction is shown: run `wsiseg qc predict`",
            run.qc / "features.parquet",
        )
        return None
    if not rows:
        return None
    features = np.array(list(rows.values()), np.float64)
    return _predict(run, [index[i] for i in rows], features, [], write=False)


def _features(
    run: QcRun, index: Sequence[PatchRow], progress: Callable[[int, int], None] | None
) -> tuple[dict[str, list[float]], list[tuple[str, str]]]:
    """Return the features of all patches, after computing and storing missing ones, and (patch id, reason) of failures."""
    stored = read_features(run.qc / "features.parquet")
    found = {i: [v for v in values if v is not None] for i, values in stored.items() if None not in values}
    todo: dict[str, list[PatchRow]] = {}
    for e in index:
        if e.patch_id not in found:
            todo.setdefault(e.slide_id, []).append(e)
    failed: list[tuple[str, str]] = []
    if not todo:
        return found, failed
    from wsiseg.cluster.limits import usable_cores

    with ThreadPoolExecutor(max_workers=max(1, min(8, usable_cores()))) as pool:
        jobs = [pool.submit(_slide_features, run, entries) for entries in todo.values()]
        for done, job in enumerate(jobs, start=1):
            made, wrong = job.result()
            found |= made
            failed += wrong
            if progress is not None:
                progress(done, len(jobs))
    write_features(run.qc / "features.parquet", found)
    return found, failed


def _slide_features(run: QcRun, entries: Sequence[PatchRow]) -> tuple[dict[str, list[float]], list[tuple[str, str]]]:
    from PIL import Image

    made, failed = {}, []
    segmenter = patch_segmenter_of(run)
    for e in entries:
        try:
            with Image.open(io.BytesIO(read_picture(run.qc, e.file, f"{e.patch_id}.png"))) as image:
                rgb = np.asarray(image.convert("RGB"))
            made[e.patch_id] = picture_features(rgb, nuclei_of_patch(run, e), e, segmenter).tolist()
        except (WsisegError, OSError) as err:
            failed.append((e.patch_id, " ".join(str(err).split())))
    return made, failed


def _predict(
    run: QcRun,
    index: Sequence[PatchRow],
    features: npt.NDArray[np.float64],
    failed: Sequence[tuple[str, str]],
    *,
    write: bool = True,
) -> Prediction:
    model, notes = quality_model(run)
    ids = [e.patch_id for e in index]
    score = model.predict(features) if ids else np.zeros(0)
    marks = read_all_marks(run.marks, run.digest, "patches")
    words = decide(marks, PATCH_MARKS[0], PATCH_MARKS[1])
    fit, own = _own_calibration(ids, score, words)
    tuned = apply_calibration(score, fit)
    if write:
        columns = zip(index, score.tolist(), tuned.tolist(), strict=True)
        rows = [PredictedRow(e.patch_id, e.slide_id, p, q) for e, p, q in columns]
        write_rows(run.qc / "predicted.parquet", PREDICTED, rows)
    by_slide: dict[str, list[int]] = {}
    for i, e in enumerate(index):
        by_slide.setdefault(e.slide_id, []).append(i)
    slides = {
        s: predicted_share(tuned[at], [words.get(ids[i], "") for i in at], model.group_spread) for s, at in by_slide.items()
    }
    facts = {
        **{k: v for k, v in model.facts.items() if k != "of_nuclei"},
        "notes": notes,
        "n_judged": own.pop("n_judged"),
        "own": own,
    }
    fail_prob = dict(zip(ids, tuned.tolist(), strict=True))
    return Prediction(fail_prob, slides, _corrected_cohorts(run, index, marks, words), facts, failed)


def quality_model(run: QcRun) -> tuple[QualityModel, list[str]]:
    """Return the quality model for a run's network weights, and notes on its limits for this run."""
    name, sha = run.record.weights, run.record.weights_sha256
    model = load_quality(name)
    if model is None:
        other = load_quality(FALLBACK)
        if other is None:
            raise InputError(
                f"This installation has no quality model for the weights {name!r}, nor for {FALLBACK!r}. Install wsiseg again."
            )
        note = (
            f"No quality model was fitted for the weights {name or '(unknown)'}, so that of {FALLBACK!r} is used. Its order is "
            f"more reliable than its probabilities: judge at least {MIN_JUDGED} patches to calibrate them to this run."
        )
        return other, [note]
    if sha and model.facts.get("network_sha256") not in ("", sha):
        note = f"The quality model was fitted to another version of the weights {name!r}: its order is more reliable than its"
        return model, [f"{note} probabilities."]
    return model, []


def _own_calibration(
    ids: Sequence[str], score: npt.NDArray[np.float64], words: Mapping[str, str]
) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """Return the calibration to this run's reviewers (None if they judged too few patches), and the accuracy without it."""
    judged = [i for i, name in enumerate(ids) if words.get(name) in PATCH_MARKS[:2]]
    p, bad = score[judged], np.array([words[ids[i]] == PATCH_MARKS[1] for i in judged], np.bool_)
    facts: dict[str, Any] = {"n_judged": len(judged)}
    fit = recalibrate(p, bad)
    if len(judged) >= MIN_JUDGED:
        bins = calibration(p, bad, min(10, len(judged) // 15))
        facts |= {"patches": len(judged), "brier": brier(p, bad), "calibration_error": calibration_error(p, bad, len(bins))}
        facts |= {"auc": None if math.isnan(auc(p, bad)) else auc(p, bad), "calibration": bins}
    if fit is not None:
        facts |= {"offset": fit[0], "slope": fit[1]}
    return fit, facts


# --- suspects-first review ----------------------------------------------------------------------------------------------------


def suspects_first(run: QcRun, ids: Sequence[str]) -> list[str]:
    """Return patches in the weighted random order (see ``wsiseg.qc.estimate``), in which suspects tend to come first.

    The order is stored on first use and kept; patches made later are added to it. A patch without a prediction gets odds of 1.
    """
    rows = {r.patch_id: r for r in stored_rows(OrderRow, run.qc / "order.parquet", "the order of a review")}
    new = [i for i in ids if i not in rows]
    if new:
        prob = predict_run(run).fail_prob
        for i in new:
            p = prob.get(i, 0.5)
            rows[i] = OrderRow(i, p, order_key(i, float(odds_weight(p))))
        write_rows(run.qc / "order.parquet", REVIEW_ORDER, [rows[i] for i in sorted(rows)])
    return sorted(ids, key=lambda i: (rows[i].key, i))


def _corrected_cohorts(
    run: QcRun, index: Sequence[PatchRow], marks: Mapping[str, Mapping[str, Mark]], words: Mapping[str, str]
) -> dict[str, ShareEstimate]:
    """Return the corrected share of bad patches per cohort, and under ``""`` that of all slides if there are several."""
    order = {r.patch_id: r for r in stored_rows(OrderRow, run.qc / "order.parquet", "the order of a review")}
    here = [e for e in index if e.patch_id in order]
    if not here:
        return {}
    by_order: set[str] = set()
    other: set[str] = set()
    parts: set[str] = set()
    for by_item in marks.values():
        for item, mark in by_item.items():
            if mark.order.startswith("predicted"):
                by_order.add(item)
                parts.add(mark.order.removeprefix("predicted").strip() or "1/1")
            elif mark.order != "second":
                other.add(item)
    ids = [e.patch_id for e in here]
    divided = {part: [i for i in ids if in_share(i, parse_share(part))] for part in sorted(parts)}
    keys = {i: order[i].key for i in ids}
    suspects_first = {i: words[i] for i in by_order - other if i in words}
    inside, tau = reached(keys, suspects_first, words, divided)
    prob = np.array([order[i].fail_prob for i in ids])
    weight, limit = odds_weight(prob), np.array([tau.get(i, 0.0) for i in ids])
    ordered = np.array([i in inside for i in ids], np.bool_)
    said = ["" if i in suspects_first and i not in inside else words.get(i, "") for i in ids]
    cohorts = np.array([e.cohort or "(none)" for e in here])
    out = {}
    for name in ["All", *sorted(set(cohorts.tolist()))]:
        at = np.flatnonzero((cohorts == name) | (name == "All"))
        found = corrected_share(prob[at], weight[at], [said[i] for i in at], ordered[at], limit[at])
        if found is not None and ordered[at].any():
            out[name] = found
    return out
