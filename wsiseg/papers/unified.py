"""Write one unified training set and one unified test set of tiles from any annotated sets.

``train/<set>/`` and ``test/<set>/`` in the unified layout, so that any program can be trained and tested on them. No group
(patient) is in both: sets with fixed held-out groups keep those; of other sets some groups are held out here.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wsiseg.datasets import VALIDATION_GROUPS, Sample, list_samples, load_sample
from wsiseg.errors import ConfigError, FormatError
from wsiseg.labels import write_labels
from wsiseg.papers.rank_scores import TileWindow, choose_windows, held_out_groups, tile_windows
from wsiseg.tables import atomic_write_bytes

__all__ = ["UnifyOptions", "claim_plan", "unify"]


@dataclass(frozen=True, slots=True)
class UnifyOptions:
    """How sets are cut into tiles.

    Attributes
    ----------
    sets
        Names of the sets.
    test_tiles
        Test tiles of each set (14 in the paper); all tiles of a set with fewer.
    train_tiles
        At most this many training tiles of each set; 0: all.
    side
        Side of a tile, px; a smaller image is one tile of its own size.
    exclude
        CSV ``set,image[,id]``: images to leave out, or (with ``id``) single nuclei to erase from the truth. Use it for rules
        about cell types, such as the paper's about macrophages, because label images do not have cell types.
    """

    sets: tuple[str, ...]
    test_tiles: int = 14
    train_tiles: int = 0
    side: int = 256
    exclude: Path | None = None


def unify(root: Path, out: Path, options: UnifyOptions) -> dict[str, dict[str, int]]:
    """Write the unified sets unless they exist; return the numbers of training and test tiles, groups and nuclei by set.

    Raises
    ------
    ConfigError
        ``out`` contains a ranking made with other options.
    FormatError
        There is no such set, a set is a single group, or the list of exclusions is unreadable.
    """
    left_out = _exclusions(options.exclude)
    plan = {
        "test_tiles": options.test_tiles,
        "train_tiles": options.train_tiles,
        "side": options.side,
        "exclude": sorted([*where, *map(str, sorted(ids))] for where, ids in left_out.items()),
        "sets": list(options.sets),
    }
    if not claim_plan(out / "unified.json", plan):
        return dict(json.loads((out / "unified.json").read_text(encoding="utf-8"))["made"])
    made = {name: _unify_set(root, out, name, options, left_out) for name in options.sets}
    _write_json(out / "unified.json", {**plan, "made": made})
    return made


def claim_plan(path: Path, plan: Mapping[str, object]) -> bool:
    """Return whether the work of a plan is still to do. Raises ``ConfigError`` if it was done with another plan."""
    if not path.is_file():
        return True
    held = json.loads(path.read_text(encoding="utf-8"))
    differs = sorted(k for k, v in plan.items() if held.get(k) != json.loads(json.dumps(v)))
    if differs:
        raise ConfigError(
            f"{path} was made with another {differs[0]}: {held.get(differs[0])}, now {plan[differs[0]]}. "
            "Choose another --out, or the same options."
        )
    return False


def _unify_set(
    root: Path, out: Path, name: str, options: UnifyOptions, left_out: dict[tuple[str, str], frozenset[int]]
) -> dict[str, int]:
    samples = [s for s in list_samples(root, (name,)) if left_out.get((name, s.image_id), frozenset({0}))]
    windows = {s.image_id: tile_windows(s.image_id, s.group, _shape(s), options.side) for s in samples}
    held = _held_out(name, samples, windows, options.test_tiles)
    by_id = {s.image_id: s for s in samples}
    made: dict[str, int] = {}
    for part, limit in (("train", options.train_tiles), ("test", options.test_tiles)):
        mine = [w for s in samples if (s.group in held) == (part == "test") for w in windows[s.image_id]]
        chosen = choose_windows(mine, limit)
        nuclei = _write_tiles(out / part / name, by_id, chosen, left_out)
        made |= {f"{part}_tiles": len(chosen), f"{part}_groups": len({w.group for w in chosen}), f"{part}_nuclei": nuclei}
    return made


def _held_out(name: str, samples: Sequence[Sample], windows: dict[str, list[TileWindow]], n: int) -> frozenset[str]:
    if any(s.validation for s in samples):
        return VALIDATION_GROUPS[name]
    tiles: Counter[str] = Counter()
    for sample in samples:
        tiles[sample.group] += len(windows[sample.image_id])
    try:
        return held_out_groups(tiles, n)
    except FormatError as err:
        raise FormatError(f"Set {name}: {err} Leave it out with --sets, or state group_per_image in its INFO.json.") from err


def _write_tiles(
    folder: Path, samples: dict[str, Sample], chosen: Sequence[TileWindow], left_out: dict[tuple[str, str], frozenset[int]]
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, dict[str, str | float]] = {"mpp_per_image": {}, "group_per_image": {}, "organ_per_image": {}}
    nuclei = 0
    for image in dict.fromkeys(w.image for w in chosen):
        sample = samples[image]
        rgb, labels = load_sample(sample)
        erased = left_out.get((sample.dataset, image), frozenset())
        labels = np.where(np.isin(labels, sorted(erased)), 0, labels) if erased else labels
        for w in (w for w in chosen if w.image == image):
            tile = f"{image}_x{w.x}_y{w.y}"
            part = (slice(w.y, w.y + w.h), slice(w.x, w.x + w.w))
            Image.fromarray(rgb[part]).save(folder / f"{tile}.png", compress_level=1)
            write_labels(folder / f"{tile}.labels.png", labels[part])
            nuclei += len(np.unique(labels[part])) - bool((labels[part] == 0).any())
            facts["group_per_image"][tile] = sample.group
            if sample.mpp is not None:
                facts["mpp_per_image"][tile] = sample.mpp
            if sample.organ:
                facts["organ_per_image"][tile] = sample.organ
    _write_json(folder / "INFO.json", {"name": folder.name, "license": "that of the source set", **facts})
    return nuclei


def _shape(sample: Sample) -> tuple[int, int]:
    if sample.store:
        return load_sample(sample)[1].shape
    with Image.open(sample.image_path) as image:
        return image.height, image.width


def _exclusions(table: Path | None) -> dict[tuple[str, str], frozenset[int]]:
    """Return the ids to erase by (set, image); an empty set means the whole image."""
    if table is None:
        return {}
    out: dict[tuple[str, str], frozenset[int]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                key, ident = (row["set"], row["image"]), (row.get("id") or "").strip()
                whole = not ident or (key in out and not out[key])
                out[key] = frozenset() if whole else out.get(key, frozenset()) | {int(ident)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as err:
        raise FormatError(f"{table}: expected a CSV with columns set,image and optionally id (a label): {err!r}.") from err
    return out


def _write_json(path: Path, tree: Mapping[str, object]) -> None:
    atomic_write_bytes(path, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())
