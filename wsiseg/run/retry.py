"""``wsiseg segment --retry-failed``: select the slides of a run to be processed again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from wsiseg.config import RunConfig
from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.results.records import read_inputs
from wsiseg.results.slide_record import slide_records
from wsiseg.schema import FINISHED_STATUSES

__all__ = ["config_of_run", "slides_to_retry"]


def config_of_run(out: Path) -> RunConfig:
    """Return the settings of a run as its folder records them; settings of the schedule are at their defaults.

    Raises
    ------
    InputError
        The folder contains no run, or a run by another version of wsiseg with settings unknown to this version.
    """
    record = RunFolder(out).read_run()
    if record is None:
        raise InputError(f"{out} contains no wsiseg run (no run.json), so there is nothing to retry.")
    tree = {stage: options for stage, options in record.config.items() if stage != "schedule"}
    try:
        return RunConfig.from_dict(tree)
    except ConfigError as err:
        raise InputError(
            f"{out} was made by wsiseg {record.wsiseg}, with settings unknown to this version: {err} Use that version."
        ) from err


def slides_to_retry(out: Path, given: Sequence[SlideInput] = (), *, mpp: float | None = None) -> list[SlideInput]:
    """Return the slides of a run that finished or failed, in the order of their first request.

    Finished slides are included so that they keep their rows in the run's tables; they are not segmented again. Slides that
    were never started are left out. Suspect slides are not failures, as the same settings would find nothing again. Each slide
    has the mpp and mask of ``given``, or else those of its last request.

    Parameters
    ----------
    mpp
        Microns per level-0 px for slides that failed because it was unknown.

    Raises
    ------
    InputError
        The folder contains no run, nothing failed, or a failed slide's file was never recorded.
    """
    folder = RunFolder(out)
    if folder.read_run() is None:
        raise InputError(f"{out} contains no wsiseg run (no run.json), so there is nothing to retry.")
    known = {**read_inputs(folder), **{s.slide_id: s for s in given}}
    states = {slide_id: "" if isinstance(r, FormatError) else r.row.status for slide_id, r in slide_records(folder)}
    failed = {s for s, status in states.items() if status not in FINISHED_STATUSES}
    if not failed:
        suspect = [s for s, status in states.items() if status == "suspect"]
        text = f"Nothing failed in {out}."
        if suspect:
            text += f" {len(suspect)} slides are suspect, {suspect[0]} among them: "
            text += "to segment them again, name them with another --mpp or --tissue-mask."
        raise InputError(text)
    unknown = sorted(failed - set(known))
    if unknown:
        raise InputError(
            f"{out} does not record the file of slide {unknown[0]!r}. Give the slides as arguments, with --retry-failed."
        )
    slides = [s for s in known.values() if s.slide_id in states]
    if mpp is not None:
        slides = [dataclasses.replace(s, mpp=mpp) if s.slide_id in failed and s.mpp is None else s for s in slides]
    return slides
