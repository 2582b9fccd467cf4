"""What a worker process holds: the model, a few open slides and their constants."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from wsiseg.config import RunConfig
from wsiseg.read.slide import Slide
from wsiseg.run.folder import RunFolder
from wsiseg.run.job import SlideJob, load_job, open_job_slide
from wsiseg.separate import SeparateParams, resolve_params

if TYPE_CHECKING:  # the client knows a context but never computes: it starts without torch
    from wsiseg.predict import Model

__all__ = ["WorkerContext", "compute_device"]

MAX_OPEN_SLIDES = 3
"""Open handles a worker keeps: tiles arrive slide by slide, so few are needed and memory stays flat."""


def compute_device(config: RunConfig) -> str:
    """Return the torch device of a config's workers."""
    return "cuda" if config.schedule.device == "cuda" else "cpu"


class WorkerContext:
    """The resources of one worker process, opened on first use and closed with it."""

    def __init__(self, folder: RunFolder, config: RunConfig, digest: str, device: str = "cpu") -> None:
        self.folder = folder
        self.config = config
        self.digest = digest
        self.device = device
        self._model: Model | None = None
        self._open: OrderedDict[str, tuple[SlideJob, Slide]] = OrderedDict()
        self._params: dict[float, SeparateParams] = {}

    @property
    def model(self) -> Model:
        """Return the network, loaded once."""
        if self._model is None:
            from wsiseg.predict import load_model, tune_malloc

            tune_malloc()
            # oneDNN keeps compiled kernels for every size of window it has met, 1024 of them if let: memory grew for long
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
            self._model = load_model(self.config.predict, self.device)
        return self._model

    def job_and_slide(self, slide_id: str) -> tuple[SlideJob, Slide]:
        """Return a slide's constants and open handle; the least recently used handle is closed when there are too many."""
        if slide_id not in self._open:
            job = load_job(self.folder, slide_id)
            self._open[slide_id] = (job, open_job_slide(job, self.config))
            while len(self._open) > MAX_OPEN_SLIDES:
                _, (_, slide) = self._open.popitem(last=False)
                slide.close()
        self._open.move_to_end(slide_id)
        return self._open[slide_id]

    def separate_params(self, mpp_working: float) -> SeparateParams:
        """Return the separation parameters resolved for a working resolution."""
        if mpp_working not in self._params:
            self._params[mpp_working] = resolve_params(self.config.separate, self.model.separate_defaults, mpp_working)
        return self._params[mpp_working]

    def forget(self, slide_id: str) -> None:
        """Close a slide's handle so that the next tile opens it anew."""
        entry = self._open.pop(slide_id, None)
        if entry is not None:
            entry[1].close()

    def close(self) -> None:
        """Close all handles."""
        for slide_id in list(self._open):
            self.forget(slide_id)

    def facts(self) -> dict[str, object]:
        """Return what this worker would compute with: part of the run's digest."""
        return {
            "weights": self.model.name,
            "weights_sha256": self.model.sha256,
            "precision": self.model.precision,
            "engine": self.model.engine,
            "mpp_model": self.model.mpp,
            "stain_method": self.stain_method,
            "separate": dataclasses.asdict(self.separate_params(self.model.mpp)),
        }

    @property
    def stain_method(self) -> str:
        """Return the stain normalization in use (``auto``: what the weights were trained for)."""
        method = self.config.normalize.method
        return self.model.stain_method if method == "auto" else method
