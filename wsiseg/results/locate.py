"""Find the files of a run on this machine: under another prefix (path map), or as a copy on the local disk (staging)."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from wsiseg.config import RunConfig
from wsiseg.fetch import FetchOptions, StagedSlide, Wanted, absolute_place, fetch_to_staging
from wsiseg.read.files import plain_name
from wsiseg.results.manifest import SlideInput
from wsiseg.results.remote import level_chooser
from wsiseg.results.slide_input import absolute_mask
from wsiseg.results.staging import staged

__all__ = ["absolute_inputs", "fetch_options", "fetch_root", "fetched_slide", "local_config", "local_path", "slide_file"]


def local_path(path: str, path_map: Sequence[str]) -> str:
    """Return a path on this machine: mapped by the first ``FROM=TO`` pair that gives an existing path, or the path itself.

    If none exists, the path mapped by the first matching pair is returned, so that an error names the expected path.
    """
    mapped = []
    for pair in path_map:
        prefix, _, target = pair.partition("=")
        prefix = prefix.rstrip("/")
        if path == prefix or path.startswith(prefix + "/"):
            mapped.append(target.rstrip("/") + path[len(prefix) :] or "/")
    return next((p for p in [*mapped, path] if os.path.exists(p)), mapped[0] if mapped else path)


def local_config(config: RunConfig) -> RunConfig:
    """Return the config with the path of the weights on this machine."""
    weights = local_path(config.predict.weights, config.schedule.path_map)
    return dataclasses.replace(config, predict=dataclasses.replace(config.predict, weights=weights))


def slide_file(path: str, slide_id: str, config: RunConfig) -> str:
    """Return the file to open for a slide on this machine; copy it to the staging folder first, if there is one.

    Raises
    ------
    SlideOpenError
        The slide could not be copied.
    """
    found = local_path(path, config.schedule.path_map)
    if not config.schedule.stage:
        return found
    return str(staged(Path(found), slide_id, Path(config.schedule.stage), int(config.schedule.stage_gb * 1e9)))


def fetch_root(config: RunConfig) -> Path:
    """Return the folder of fetched slides of this machine; machines may share its parent on shared storage."""
    root = Path(local_path(config.schedule.fetch_to, config.schedule.path_map))
    return root / plain_name(platform.node()) if config.schedule.remote else root


def fetch_options(config: RunConfig) -> FetchOptions:
    """Return the options by which this run fetches slides."""
    schedule = config.schedule
    token_file = local_path(schedule.gdc_token_file, schedule.path_map) if schedule.gdc_token_file else ""
    return FetchOptions(schedule.fetch_connections, schedule.fetch_patience_s, token_file)


def fetched_slide(want: Wanted, slide_id: str, config: RunConfig, mpp_model: float = 0.25) -> StagedSlide:
    """Return the local copy of a slide at an address; fetch it if it is not staged yet.

    Raises
    ------
    FetchError
        The slide cannot be fetched.
    """
    return fetch_to_staging(want, slide_id, fetch_root(config), fetch_options(config), choose=level_chooser(mpp_model))


def absolute_inputs(slides: Sequence[SlideInput], config: RunConfig) -> tuple[list[SlideInput], RunConfig]:
    """Return slides and config with absolute paths, because workers may have another working folder."""
    weights = config.predict.weights
    if weights.endswith(".safetensors"):
        config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, weights=os.path.abspath(weights)))
    schedule = config.schedule
    if schedule.gdc_token_file:
        schedule = dataclasses.replace(schedule, gdc_token_file=os.path.abspath(schedule.gdc_token_file))
        config = dataclasses.replace(config, schedule=schedule)
    there = [dataclasses.replace(s, path=absolute_place(s.path), tissue_mask=absolute_mask(s.tissue_mask)) for s in slides]
    return there, config
