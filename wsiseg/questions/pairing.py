"""Match annotation files to the slides of a run by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsiseg.errors import InputError
from wsiseg.tables.annotations import ANNOTATION_ENDINGS

__all__ = ["Pairing", "pair_annotations", "tables_of"]

_SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".tiff", ".tif", ".scn", ".bif", ".dcm", ".czi", ".vms", ".ome")
_SEPARATORS = " ._-"
NAMED = 10


@dataclass(frozen=True, slots=True)
class Pairing:
    """Pairs of (polygon table, annotation file), slides and files without a partner, and notes on pairs of unequal names."""

    pairs: list[tuple[Path, Path]]
    slides_without: list[str] = field(default_factory=list)
    files_without: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tables_of(target: Path, slide_ids: Sequence[str] = ()) -> list[Path]:
    """Return the polygon tables of a run folder, or the given table; only those of ``slide_ids`` if any are given.

    Raises
    ------
    InputError
        There is no table, or a slide id is unknown.
    """
    if target.is_file():
        return [target]
    found = {p.stem: p for p in sorted((target / "nuclei").glob("*.parquet"))}
    if not found:
        raise InputError(f"{target}: expected a polygon table or a run folder with nuclei/*.parquet.")
    if unknown := [s for s in slide_ids if s not in found]:
        raise InputError(f"{target}: no slide {unknown[0]!r} in this run. It has: {shown(list(found))}.")
    return [found[s] for s in slide_ids] if slide_ids else list(found.values())


def pair_annotations(tables: Sequence[Path], annotations: Path) -> Pairing:
    """Pair the tables of slides with annotation files.

    If there is one file and one slide, they are a pair. Otherwise a file belongs to a slide if its name without suffix is the
    slide's id or the name of the slide's file, starts with the id and a separator (``SLIDE_annotations.xml``), or is the part
    of the id before a dot (a TCGA barcode without its UUID).

    Raises
    ------
    InputError
        No file matches a slide, a file matches several slides, or several files match one slide.
    """
    if not annotations.is_dir():
        if not annotations.exists():
            raise InputError(f"{annotations}: no such file or folder.")
        if len(tables) == 1:
            return Pairing([(tables[0], annotations)])
        files = [annotations]
    else:
        files = sorted(p for p in annotations.rglob("*") if p.is_file() and p.name.lower().endswith(ANNOTATION_ENDINGS))
        files = [p for p in files if not p.name.startswith(".")]
        if not files:
            raise InputError(f"{annotations}: expected annotation files ({', '.join(ANNOTATION_ENDINGS)}), got none.")
    by_id = {t.stem: t for t in tables}
    taken: dict[str, Path] = {}
    notes, without = [], []
    for path in files:
        slide_id = _slide_of(path, by_id)
        if slide_id is None:
            without.append(path)
            continue
        if slide_id in taken:
            raise InputError(
                f"Slide {slide_id} has two annotation files: {taken[slide_id]} and {path}. Name one of them, or merge them."
            )
        taken[slide_id] = path
        if _stem(path) != slide_id:
            notes.append(f"{path.name} is used for slide {slide_id}")
    if not taken:
        raise InputError(
            f"{annotations}: none of {len(files)} annotation files ({shown([p.name for p in files])}) has the name of one of "
            f"{len(by_id)} slides ({shown(list(by_id))}). Rename the files, or give one slide (--slide) and its file."
        )
    return Pairing([(by_id[s], p) for s, p in sorted(taken.items())], [s for s in by_id if s not in taken], without, notes)


def shown(names: Sequence[str]) -> str:
    """Return the first few names as text."""
    return f"{', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}" or "none"


def _stem(path: Path) -> str:
    lower = path.name.lower()
    ending = next((e for e in ANNOTATION_ENDINGS if lower.endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)] if ending else path.name


def _slide_of(path: Path, by_id: dict[str, Path]) -> str | None:
    stem = _stem(path)
    plain = next((stem[: -len(e)] for e in _SLIDE_ENDINGS if stem.lower().endswith(e)), stem)
    for name in (stem, plain):
        if name in by_id:
            return name
    longer = [s for s in by_id if stem.startswith(s) and stem[len(s)] in _SEPARATORS]
    longest = max(map(len, longer), default=0)
    found = [s for s in longer if len(s) == longest] or [s for s in by_id if s.startswith(f"{plain}.")]
    if len(found) > 1:
        raise InputError(f"{path}: its name matches {len(found)} slides ({shown(found)}). Rename it to the full id of one.")
    return found[0] if found else None
