"""Slow oracles of the instance scores: one boolean mask a nucleus, loops as in the published definitions.

Dice and DICE_2: Vu et al. 2019. AJI: Kumar et al. 2017, Algorithm 1. AJI+, PQ for nuclei: Graham et al. 2019; PQ: Kirillov et
al. 2019. The one-to-one assignment is found by trying every one, so it suits a handful of nuclei.
"""

import itertools

import numpy as np


def masks(labels):
    return [labels == i for i in np.unique(labels) if i != 0]


def dice1(pred, truth):
    p, t = pred != 0, truth != 0
    return 2 * (p & t).sum() / (p.sum() + t.sum())


def dice2(pred, truth):
    shared = total = 0
    for q in masks(truth):
        for p in masks(pred):
            if (q & p).any():
                shared += (q & p).sum()
                total += q.sum() + p.sum()
    return 2 * shared / total if total else 0.0


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def aji(pred, truth):
    predicted, used = masks(pred), set()
    shared = union = 0
    for q in masks(truth):
        best = max(range(len(predicted)), key=lambda j: iou(q, predicted[j]), default=None)
        if best is None or not (q & predicted[best]).any():
            union += q.sum()
            continue
        shared += (q & predicted[best]).sum()
        union += (q | predicted[best]).sum()
        used.add(best)
    union += sum(p.sum() for j, p in enumerate(predicted) if j not in used)
    return shared / union


def best_assignment(pred, truth):
    """Every one-to-one assignment tried: the pairs (truth, pred) of the greatest summed IoU."""
    t, p = masks(truth), masks(pred)
    table = np.array([[iou(a, b) for b in p] for a in t]).reshape(len(t), len(p))
    wide = table if len(t) <= len(p) else table.T
    best, best_pairs = -1.0, []
    for columns in itertools.permutations(range(wide.shape[1]), wide.shape[0]):
        total = sum(wide[i, j] for i, j in enumerate(columns))
        if total > best + 1e-12:
            best, best_pairs = total, [(i, j) for i, j in enumerate(columns) if wide[i, j] > 0]
    return best_pairs if len(t) <= len(p) else [(j, i) for i, j in best_pairs]


def aji_plus(pred, truth):
    t, p = masks(truth), masks(pred)
    pairs = best_assignment(pred, truth)
    shared = sum((t[i] & p[j]).sum() for i, j in pairs)
    union = sum((t[i] | p[j]).sum() for i, j in pairs)
    union += sum(m.sum() for i, m in enumerate(t) if i not in {a for a, _ in pairs})
    union += sum(m.sum() for j, m in enumerate(p) if j not in {b for _, b in pairs})
    return shared / union


def detection(pred, truth, threshold=0.5):
    """TP, FP, FN and the sum of matched IoU at IoU > threshold (>= 0.5, so that matches are unique)."""
    t, p = masks(truth), masks(pred)
    matched = [iou(a, b) for a in t for b in p if iou(a, b) > threshold]
    tp = len(matched)
    return tp, len(p) - tp, len(t) - tp, sum(matched)


def pq(pred, truth):
    tp, fp, fn, iou_sum = detection(pred, truth)
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = iou_sum / tp if tp else 0.0
    return dq * sq, dq, sq
