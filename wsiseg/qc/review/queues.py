"""Decide which patches a reviewer judges, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from wsiseg.errors import ConfigError

__all__ = ["in_share", "parse_share", "patch_queue"]


def parse_share(text: str) -> tuple[int, int]:
    """Return (k, n) from the text ``"k/n"``: the k-th of n reviewers. Raises ``ConfigError`` for any other text."""
    try:
        k, n = (int(v) for v in text.split("/"))
    except ValueError as err:
        raise ConfigError(f"Expected a share such as 1/2 (first of two reviewers), got {text!r}.") from err
    if not 1 <= k <= n <= 1000:
        raise ConfigError(f"Expected a share k/n with 1 <= k <= n <= 1000, got {text!r}.")
    return k, n


def patch_queue(
    ids: Sequence[str],
    own: Collection[str] = (),
    others: Collection[str] = (),
    *,
    share: tuple[int, int] = (1, 1),
    second_opinion_frac: float = 0.0,
) -> list[str]:
    """Return the patches of one reviewer, in the order of ``ids``.

    Parameters
    ----------
    ids
        All patches, in review order.
    own, others
        Patches that this reviewer has marked, and patches that other reviewers have marked.
    share
        (k, n): this is the k-th of n reviewers who divide the work. Patches are assigned by a hash of their id, so adding
        patches later does not change the assignment of the others.
    second_opinion_frac
        0: show patches that nobody else has marked. Above 0: show this share of the patches that others have marked; the sample
        is the same for every reviewer who gives second opinions.

    Raises
    ------
    ConfigError
        ``second_opinion_frac`` is not within 0 and 1.
    """
    if not 0 <= second_opinion_frac <= 1:
        raise ConfigError(f"Expected a share of second opinions from 0 to 1, got {second_opinion_frac!r}.")
    mine, theirs = set(own), set(others)
    k, n = share
    chosen = []
    for item in ids:
        if item in mine:
            chosen.append(item)
        elif second_opinion_frac > 0:
            if item in theirs and _hash_fraction(f"second {item}") < second_opinion_frac:
                chosen.append(item)
        elif item not in theirs and in_share(item, (k, n)):
            chosen.append(item)
    return chosen


def in_share(item: str, share: tuple[int, int]) -> bool:
    """Return whether a hash of the patch id assigns it to the k-th of n reviewers; ``share`` is (k, n)."""
    k, n = share
    return int(_hash_fraction(f"share {item}") * n) == k - 1


def _hash_fraction(text: str) -> float:
    """Return a number in [0, 1), evenly distributed, that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
