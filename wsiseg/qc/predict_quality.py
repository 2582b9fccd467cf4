"""Predict from the features of a patch the probability that a reviewer would judge it not adequate; measure its reliability.

The model is a logistic regression with a ridge penalty. There are few annotated patients, and more flexible models learn which
data set an image is from instead of whether its segmentation failed (gradient-boosted trees and random forests on the same
features were not better on held-out patients). It is trained by ``benchmarks/predicted_quality.py`` on annotated patches (one
fails if precision or recall is below 75 %), which writes one JSON file for each set of network weights: coefficients, licence,
and the calibration measured on held-out patients. ``recalibrate`` adapts the probabilities to a run's own reviewers once they
have judged enough patches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.qc.patch_features import FEATURES
from wsiseg.schema.quality import OF_ORIENTATIONS

__all__ = [
    "FALLBACK",
    "MIN_JUDGED",
    "QualityModel",
    "apply_calibration",
    "auc",
    "brier",
    "calibration",
    "calibration_error",
    "fit_quality",
    "group_spread",
    "load_quality",
    "recalibrate",
    "reviews_saved",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_STAIN = ("od_mean", "hue_x", "hue_y")
_USED = tuple(f for f in FEATURES if f not in _STAIN)
TERMS = (*_USED, "stain_far")
"""Inputs of the model. ``stain_far`` is how far density and hue are from those of its training patches, in robust standard
deviations. It replaces the three stain features because high and low values are both suspect, which a linear term cannot
express."""

_COUNT = TERMS.index("log_count")
_OF_A_PATCH = ("log_count", "dark_outside_frac", "sharpness", "stain_far", *OF_ORIENTATIONS)
_OF_A_NUCLEUS = [i for i, t in enumerate(TERMS) if t not in _OF_A_PATCH]

MIN_JUDGED = 30
"""From this number of judged patches, some adequate and some not, a run's own calibration replaces the general one."""

MIN_QUALITY, QUALITY_WIDTH = 0.75, 0.12
"""Minimum precision and recall of an adequate patch, and the width of the sigmoid by which ``fit_quality`` converts a quality
to a target.
In a patch of 30 nuclei a share of 0.75 has a standard error of 0.08, and annotators differ by about as much again."""

FOLDS = 8
"""Parts into which ``fit_quality`` divides the patients for its calibration."""

FALLBACK = "open"
"""Weights whose quality model is used for runs with weights that have none (own weights, or imported nuclei)."""

SLOPE_RIDGE, OFFSET_RIDGE = 4.0, 0.1
"""Ridge penalties of ``recalibrate`` on a change of slope and of offset: a slope needs more patches to estimate than an
offset."""


@dataclass(frozen=True, slots=True, eq=False)
class QualityModel:
    """Logistic regression over ``TERMS``.

    Attributes
    ----------
    mean, scale : float64 (37,)
        Mean and standard deviation of each term over the training patches.
    weights : float64 (38,)
        Coefficients of the standardized terms, then the constant.
    stain : float64 (2, 3)
        Median and robust spread of ``od_mean``, ``hue_x`` and ``hue_y`` over the training patches.
    facts
        Origin and accuracy of the model: ``network`` and ``network_sha256`` (the weights whose segmentation it judges),
        ``licence``, ``trained_on``, ``criterion``, ``held_out`` (patients, patches, auc, brier, calibration_error,
        group_spread, calibration).
    """

    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    stain: FloatArray
    facts: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, features: FloatArray) -> FloatArray:
        """Return the probability that each patch fails, float64 (N,), from ``features`` (N, 39) ordered as ``FEATURES``."""
        return _sigmoid(_design(_terms(features, self.stain), self.mean, self.scale) @ self.weights)

    @property
    def group_spread(self) -> float:
        """Standard deviation of patients' shares of bad patches around the prediction (see the function ``group_spread``)."""
        return float(self.facts.get("held_out", {}).get("group_spread", 0.0))

    @property
    def of_nuclei(self) -> QualityModel | None:
        """Return the model that uses only columns of nuclei, for maps of whole slides; None if none was stored."""
        raw = self.facts.get("of_nuclei")
        return None if raw is None else QualityModel.from_json(json.dumps({**raw, "terms": TERMS}))

    def to_json(self) -> str:
        """Return the model as JSON text, with the names of its terms."""
        numbers = {k: _short(getattr(self, k)) for k in ("mean", "scale", "weights", "stain")}
        return json.dumps({**self.facts, "terms": TERMS, **numbers}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> QualityModel:
        """Return the model from the text of ``to_json``. Raises ``FormatError`` for any other text, or if the terms differ."""
        try:
            raw = json.loads(text)
            arrays = {k: np.array(raw.pop(k), np.float64) for k in ("mean", "scale", "weights", "stain")}
            names = tuple(raw.pop("terms"))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise FormatError(f"Not a quality model: {err}") from err
        n = len(TERMS)
        shapes = {"mean": (n,), "scale": (n,), "weights": (n + 1,), "stain": (2, len(_STAIN))}
        if names != TERMS or any(arrays[k].shape != shape or not np.isfinite(arrays[k]).all() for k, shape in shapes.items()):
            raise FormatError(f"Expected a quality model with the terms {TERMS}, got {names}. Fit the model again.")
        return cls(**arrays, facts=raw)


def _short(values: FloatArray) -> Any:
    """Return the values as lists of floats rounded to eight digits."""
    return np.vectorize(lambda v: float(f"{v:.8g}"))(values).tolist()


def load_quality(network: str) -> QualityModel | None:
    """Return the installed quality model for a set of network weights (``open``, ``research``), or None if there is none."""
    file = files("wsiseg.qc").joinpath("quality_models", f"{network}.json")
    return QualityModel.from_json(file.read_text(encoding="utf-8")) if network.isidentifier() and file.is_file() else None


def fit_quality(
    features: FloatArray,
    fails: BoolArray,
    importance: FloatArray | None = None,
    *,
    quality: FloatArray | None = None,
    groups: npt.NDArray[np.str_] | None = None,
    ridge: float = 25.0,
    steps: int = 50,
) -> QualityModel:
    """Fit the model by Newton's method on the penalized likelihood (unique optimum; no random numbers).

    Parameters
    ----------
    features : float64 (N, 39)
        In the order of ``FEATURES``.
    fails : bool (N,)
        True if precision or recall against truth is below 75 %.
    importance : float64 (N,), optional
        Weight of each patch, 1 on average: overlapping patches of one image carry less information than separate ones.
    quality : float64 (N,), optional
        The lower of precision and recall, 0 to 1. If given, the weights are fitted to the distance of the quality from 75 % (a
        patch just below is nearly as good as one just above), and the scores are then calibrated to probabilities of ``fails``.
    groups : str (N,), optional
        Patient of each patch; required with ``quality``, because calibration uses scores of held-out patients.
    ridge
        Penalty on the squared weights; the constant has no penalty.
    steps
        Maximum number of Newton steps.

    Raises
    ------
    InputError
        Shapes differ, numbers are not finite, all patches fail or none does, or ``quality`` and ``groups`` are not both given.
    """
    y = np.asarray(fails, np.float64)
    if features.shape != (len(y), len(FEATURES)) or not np.isfinite(features).all():
        raise InputError(
            f"Expected finite features (N, {len(FEATURES)}) and one truth value per patch, got {features.shape} and {y.shape}."
        )
    if not len(y) or y.min() == y.max():
        raise InputError(f"Expected both patches that fail and patches that do not, got {int(y.sum())} that fail of {y.size}.")
    if (quality is None) != (groups is None):
        raise InputError("Expected both quality and groups, got only one of them.")
    if groups is not None and len(np.unique(groups)) < 2:
        raise InputError("Expected patches of at least two groups, got one: calibration needs a group that can be held out.")
    counts = np.ones(len(y)) if importance is None else np.asarray(importance, np.float64)
    if quality is None or groups is None:
        return _fit(features, y, counts, ridge, steps)
    near = _sigmoid((MIN_QUALITY - np.asarray(quality, np.float64)) / QUALITY_WIDTH)
    score = np.zeros(len(y))
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    for k in np.unique(fold):
        here = fold == k
        score[here] = _fit(features[~here], near[~here], counts[~here], ridge, steps).predict(features[here])
    x = np.column_stack([np.ones(len(y)), _logit(score)])
    offset, slope = _newton(x, y, counts, np.full(2, 1e-3), np.array([0.0, 1.0]), steps).tolist()
    model = _fit(features, near, counts, ridge, steps)
    weights = slope * model.weights
    weights[-1] += offset
    return QualityModel(model.mean, model.scale, weights, model.stain)


def _fit(features: FloatArray, target: FloatArray, counts: FloatArray, ridge: float, steps: int) -> QualityModel:
    """Return the model fitted to targets from 0 to 1; ``counts`` are the weights of the patches."""
    raw = features[:, [FEATURES.index(name) for name in _STAIN]]
    median = np.median(raw, axis=0)
    spread = 1.4826 * np.median(np.abs(raw - median), axis=0)
    stain = np.stack([median, np.where(spread > 1e-6, spread, 1.0)])
    terms = _terms(features, stain)
    mean, scale = terms.mean(axis=0), terms.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = _design(terms, mean, scale)
    pull = np.append(np.full(len(TERMS), ridge), 1e-9)
    return QualityModel(mean, scale, _newton(x, target, counts, pull, np.zeros(x.shape[1]), steps), stain)


def _newton(x: FloatArray, y: FloatArray, counts: FloatArray, pull: FloatArray, start: FloatArray, steps: int) -> FloatArray:
    """Return the weights that maximize log-likelihood - pull / 2 * (weights - start)**2."""
    weights = start.copy()
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (counts * (p - y)) + pull * (weights - start)
        curvature = (x * (counts * p * (1 - p))[:, None]).T @ x + np.diag(pull)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step / max(1.0, float(np.abs(step).max()))  # damped far from the optimum, Newton near it
        if np.abs(step).max() < 1e-9:
            break
    return weights


def _terms(features: FloatArray, stain: FloatArray) -> FloatArray:
    used = features[:, [FEATURES.index(name) for name in _USED]]
    raw = features[:, [FEATURES.index(name) for name in _STAIN]]
    far = np.sqrt((((raw - stain[0]) / stain[1]) ** 2).sum(axis=1))
    return np.column_stack([used, far])


def _design(terms: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    z = np.clip((terms - mean) / scale, -4, 4)  # one extreme feature must not decide alone
    z[np.ix_(terms[:, _COUNT] == 0, _OF_A_NUCLEUS)] = 0.0  # without nuclei their features are unknown: no effect
    return np.column_stack([z, np.ones(len(z))])


def _sigmoid(x: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(x / 2))


def recalibrate(score: FloatArray, fails: BoolArray) -> tuple[float, float] | None:
    """Return (offset, slope) so that sigmoid(offset + slope * logit(score)) fits judged patches; None below ``MIN_JUDGED``.

    This is Platt scaling (Platt 1999) with a penalty on the distance from (0, 1), which means no change. It remains valid if
    patches were selected for judging by their score, since this does not change the probability of failing given the score.
    """
    y = np.asarray(fails, np.float64)
    if len(y) < MIN_JUDGED or y.min() == y.max():
        return None
    x = np.column_stack([np.ones(len(y)), _logit(score)])
    offset, slope = _newton(x, y, np.ones(len(y)), np.array([OFFSET_RIDGE, SLOPE_RIDGE]), np.array([0.0, 1.0]), 50).tolist()
    return offset, max(slope, 0.05)  # above 0, so that a few patches cannot reverse the order


def apply_calibration(score: FloatArray, fit: tuple[float, float] | None) -> FloatArray:
    """Return the scores after the calibration that ``recalibrate`` returned; unchanged if that is None."""
    return score if fit is None else _sigmoid(fit[0] + fit[1] * _logit(score))


def _logit(p: FloatArray) -> FloatArray:
    q = np.clip(np.asarray(p, np.float64), 1e-4, 1 - 1e-4)
    return np.log(q / (1 - q))


def auc(score: FloatArray, fails: BoolArray) -> float:
    """Return the area under the ROC curve: the probability that a failing patch scores above a good one (ties count half).

    Computed from ranks (Mann and Whitney 1947); NaN if all patches fail or none does.
    """
    bad = np.asarray(fails, np.bool_)
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if not n_bad or not n_good:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[place][bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def brier(score: FloatArray, fails: BoolArray) -> float:
    """Return the mean squared error of the probabilities (Brier 1950): 0 is perfect.

    Always predicting the share p gives p (1 - p).
    """
    return float(np.mean((np.asarray(score, np.float64) - np.asarray(fails, np.float64)) ** 2))


def reviews_saved(score: FloatArray, fails: BoolArray, recall: float = 0.9, prevalence: float | None = None) -> float:
    """Return the share of reviews that reviewing by descending score saves, compared with random order.

    Finding a share ``recall`` of the failing patches in random order takes that share of all reviews. The result is
    1 - (reviews in order of score) / (reviews in random order). It is negative if failing patches score low, and at most
    1 - prevalence, because every failing patch must be reviewed.

    Parameters
    ----------
    score : float64 (N,)
        Predicted probability of failing.
    fails : bool (N,)
        Whether the patch fails.
    recall
        Share of failing patches to find, in (0, 1].
    prevalence
        Weight the patches as if this share of them failed, 0 to 1; None: the observed share.

    Raises
    ------
    InputError
        No patch fails, or ``recall`` is out of range.
    """
    bad = np.asarray(fails, np.bool_)
    n_bad = int(bad.sum())
    if not n_bad or not 0 < recall <= 1 or (prevalence is not None and not 0 < prevalence < 1):
        raise InputError(f"Expected at least 1 failing patch and a recall in (0, 1], got {n_bad} failing and recall {recall}.")
    share = n_bad / len(bad) if prevalence is None else prevalence
    each = np.where(bad, share / n_bad, (1 - share) / max(1, len(bad) - n_bad))
    order = np.argsort(-np.asarray(score), kind="stable")
    wanted = math.ceil(recall * n_bad - 1e-9)
    needed = int(np.searchsorted(np.cumsum(bad[order]), wanted)) + 1
    return 1 - float(each[order][:needed].sum()) / recall


def calibration(score: FloatArray, fails: BoolArray, bins: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean predicted, observed share, patches) of bins with equal numbers of patches, by ascending score."""
    order = np.argsort(score, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return [(float(score[part].mean()), float(np.asarray(fails, np.float64)[part].mean()), int(part.size)) for part in parts]


def calibration_error(score: FloatArray, fails: BoolArray, bins: int = 10) -> float:
    """Return the expected calibration error: mean |predicted - observed| over bins with equal numbers of patches."""
    return sum(abs(p - o) * n for p, o, n in calibration(score, fails, bins)) / max(1, len(score))


def group_spread(score: FloatArray, fails: BoolArray, groups: npt.NDArray[np.str_]) -> float:
    """Return the standard deviation of (true share of bad patches - predicted share) between patients.

    It is the error of a patient's prediction that more patches do not average out: the square root of the mean squared
    difference of observed and predicted share per patient after subtraction of binomial sampling noise, at least 0.
    """
    excess = []
    for name in np.unique(groups):
        here = groups == name
        s, n = np.asarray(score, np.float64)[here], int(here.sum())
        excess.append((float(np.asarray(fails, np.float64)[here].mean() - s.mean())) ** 2 - float((s * (1 - s)).sum()) / n**2)
    return math.sqrt(max(0.0, float(np.mean(excess))))
