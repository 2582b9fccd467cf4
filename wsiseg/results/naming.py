"""Give unique ids to slides with the same name in several folders, or with several suffixes.

Ids depend only on paths, so that listing a folder again gives the same ids. Slides that are already in a run folder keep their
ids, even if other slides have been added since.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiseg.fetch import absolute_place, shown
from wsiseg.read.files import plain_name
from wsiseg.results.slide_input import SlideInput

__all__ = ["Listed", "named_apart"]

_SCHEME = re.compile(r"^[^/:]+:/+")
NAMED = 5
"""Maximum number of slide ids in a message."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A slide that was found in a folder; ``base`` is the folder that was searched."""

    slide: SlideInput
    base: Path


def named_apart(
    slides: Sequence[SlideInput | Listed], known: Mapping[str, str] | None = None
) -> tuple[list[SlideInput], list[str]]:
    """Return the slides with unique ids, and notes for the user about changed ids.

    If ids of slides found in folders are equal, they are extended in this order until they differ: by the folders below
    ``base`` (``p1__scan``), by the suffix for slides in the same folder (``scan.svs``, ``scan.dicom``), by the name of
    ``base``, and by a hash of the path (first below ``base``, which is not affected by moving it, then of the full path). Ids
    of slides given by path or in a manifest do not change, even if two are equal.

    Parameters
    ----------
    slides
        Slides in the order given.
    known
        Ids of an earlier run by absolute path, which are kept, also for slides given by path (but not for rows of a manifest).
    """
    plain = [s.slide if isinstance(s, Listed) else s for s in slides]
    keys = [(shown(absolute_place(s.path)), s.slide_id if s.origin else "") for s in plain]
    steps: dict[tuple[str, str], list[str]] = {}
    for one, s, key in zip(slides, plain, keys, strict=True):
        old = None if s.origin else (known or {}).get(key[0])
        if not isinstance(one, Listed) or old:
            steps[key] = [old or s.slide_id]
        else:
            steps.setdefault(key, _ids(one))
    at = dict.fromkeys(steps, 0)
    while free := [key for key in _clashing({k: ids[at[k]] for k, ids in steps.items()}) if at[key] + 1 < len(steps[key])]:
        for key in free:
            at[key] += 1
    ids = [steps[key][at[key]] for key in keys]
    named = [dataclasses.replace(s, slide_id=new) if new != s.slide_id else s for s, new in zip(plain, ids, strict=True)]
    return named, _notes(plain, named)


def _ids(listed: Listed) -> list[str]:
    """Return the possible ids of a slide, shortest first."""
    slide_id = listed.slide.slide_id
    path, base = (Path(_SCHEME.sub("/", absolute_place(str(p)))) for p in (listed.slide.path, listed.base))
    parents = path.parent.relative_to(base).parts if path != base and path.is_relative_to(base) else ()
    whole = (base.name, *parents, path.name)
    longer = ((*parents, slide_id), (*parents, path.name), whole, (_marked("/".join(whole)),), (_marked(str(path)),))
    return list(dict.fromkeys([slide_id, *(plain_name("__".join(parts)) for parts in longer)]))


def _marked(path: str) -> str:
    """Return the last part of a path with 12 hex digits of the SHA-256 of the whole path."""
    return f"{path.rpartition('/')[2]}~{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def _clashing(ids: Mapping[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Return the keys of slides whose id is also the id of a slide with another path."""
    paths: dict[str, set[str]] = {}
    for (path, _), slide_id in ids.items():
        paths.setdefault(slide_id, set()).add(path)
    return [key for key, slide_id in ids.items() if len(paths[slide_id]) > 1]


def _notes(before: Sequence[SlideInput], after: Sequence[SlideInput]) -> list[str]:
    renamed = {old.slide_id for old, new in zip(before, after, strict=True) if old.slide_id != new.slide_id}
    out = []
    for slide_id in dict.fromkeys(s.slide_id for s in before):
        ids = list(dict.fromkeys(new.slide_id for old, new in zip(before, after, strict=True) if old.slide_id == slide_id))
        if slide_id in renamed and len(ids) > 1:
            more = ", ..." * (len(ids) > NAMED)
            out.append(f"{len(ids)} slides are called {slide_id!r}; their ids are {', '.join(ids[:NAMED])}{more}")
        elif slide_id in renamed:
            out.append(f"the slide {slide_id!r} has the id {ids[0]!r}, from the run folder or to distinguish it from another")
    return out
