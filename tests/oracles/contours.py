"""Outlines and shape sums from the set of pixels, without walking: what ``wsiseg.vectorize`` must give for one label."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage as ndi


def filled(region: np.ndarray) -> np.ndarray:
    """The region with its 4-connected holes."""
    return ndi.binary_fill_holes(region)


def ring_of(region: np.ndarray) -> list[tuple[int, int]]:
    """Closed ring (x, y) of a 4-connected region: chain the filled region's directed edges, merge collinear points."""
    inside = {(int(y), int(x)) for y, x in np.argwhere(filled(region))}
    following: dict[tuple[int, int], tuple[int, int]] = {}
    for y, x in inside:
        for outside, a, b in (
            ((y - 1, x), (x, y), (x + 1, y)),
            ((y, x + 1), (x + 1, y), (x + 1, y + 1)),
            ((y + 1, x), (x + 1, y + 1), (x, y + 1)),
            ((y, x - 1), (x, y + 1), (x, y)),
        ):
            if outside not in inside:
                assert a not in following, "a filled 4-connected region has no corner with two outgoing edges"
                following[a] = b
    y0, x0 = min(inside)
    chain = [(x0, y0)]
    while len(chain) <= len(following):
        chain.append(following[chain[-1]])
    assert chain[-1] == chain[0], "one ring uses every edge"
    assert len(set(chain[:-1])) == len(following)
    befores = [chain[-2], *chain]
    corners = [p for before, p, after in zip(befores, chain[:-1], chain[1:], strict=False) if turns(before, p, after)]
    return [*corners, corners[0]]


def turns(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])


def sums_of(region: np.ndarray, material: np.ndarray) -> tuple[int, ...]:
    """The ten sums of ``wsiseg.vectorize.columns.SUMS``, pixel by pixel."""
    y0, x0 = np.argwhere(region)[0]
    j, i = (np.argwhere(filled(region)) - (y0, x0)).T
    ring = ring_of(region)
    edges = sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in pairwise(ring))
    moments = [len(i), i.sum(), j.sum(), (i * i).sum(), (i * j).sum(), (j * j).sum()]
    return tuple(int(v) for v in (*moments, edges, len(ring) - 1, region.sum(), material[region].sum()))
