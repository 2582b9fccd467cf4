"""Resources of a worker process: the model, a few open slides and their constants, and its threads' access to the device."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import device_number, pinned_empty
from wsiseg.cluster.devices import MAX_THREADS, compute_device
from wsiseg.config import RunConfig
from wsiseg.pipeline import stain_aim
from wsiseg.read import read_working
from wsiseg.read.slide import Slide
from wsiseg.results.folder import RunFolder
from wsiseg.run.facts import ModelFacts, WorkerFacts
from wsiseg.run.handles import OpenSlides
from wsiseg.run.job import SlideJob, load_job, open_job_slide
from wsiseg.run.readers import ReaderPool, can_share_memory
from wsiseg.separate import SeparateParams, resolve_params
from wsiseg.types import Box, Processor, Stain

if TYPE_CHECKING:  # the client imports this module but never computes, so it starts without torch
    from wsiseg.predict import Model

__all__ = ["WorkerContext", "compute_device"]

MAX_OPEN_SLIDES = 3
"""Maximum number of open slides per worker, to bound memory. Tiles arrive slide by slide, so few are needed."""


class WorkerContext:
    """The resources of one worker process, opened on first use and closed with it. Its threads share it.

    Parameters
    ----------
    device
        ``cpu``, or PyTorch's name of a GPU.
    readers
        Number of processes that read for this worker; ``None``: 0 on the CPU, on a GPU the number that cuCIM needs.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, digest: str, device: str = "cpu", readers: int | None = None
    ) -> None:
        self.folder = folder
        self.config = config
        self.digest = digest
        self.device = device
        self._model: Model | None = None
        self._lock = threading.Lock()
        self._slides = OpenSlides(self._open_slide, MAX_OPEN_SLIDES)
        self._params: dict[float, SeparateParams] = {}
        self._turns: queue.LifoQueue[Any] = queue.LifoQueue()
        most = (0 if device == "cpu" else config.schedule.threads_per_worker or MAX_THREADS) if readers is None else readers
        self._readers = ReaderPool(folder, config, most) if most and can_share_memory() else None

    @property
    def model(self) -> Model:
        """Return the network, loaded once."""
        with self._lock:
            if self._model is None:
                self._model = self._load_model()
            return self._model

    def _load_model(self) -> Model:
        from wsiseg.predict import load_model, tune_malloc

        tune_malloc()
        # by default oneDNN keeps up to 1024 compiled kernels, one for each size of window, so memory would grow for a long time
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        if self.device == "cpu":
            self._turns.put(None)
            return load_model(self.config.predict, self.device)
        from wsiseg.predict.gpu import ready_device

        schedule, read = self.config.schedule, self.config.read
        share = schedule.device_memory_frac / max(1, schedule.workers_per_gpu)
        model, streams = ready_device(self.config.predict, self.device, share, read.tile_wpx + 2 * read.halo_wpx)
        for stream in streams:
            self._turns.put(stream)
        return model

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until this thread may compute with ``model``: one at a time on the CPU, on a GPU the number that fits in memory.

        On a GPU each thread has its own stream. Reading and writing need no turn, so they overlap with computation.
        """
        stream = self._turns.get()
        try:
            if stream is None:
                yield
            else:
                from wsiseg.backend.dlpack import on_stream

                with on_stream(stream):
                    yield
        finally:
            self._turns.put(stream)

    def slide(self, slide_id: str) -> AbstractContextManager[tuple[SlideJob, Slide]]:
        """Return a block in which a slide's constants and open handle may be used."""
        return self._slides.lease(slide_id)

    def pixels(self, job: SlideJob, slide: Slide, box: Box) -> npt.NDArray[np.uint8]:
        """Read a window in working px, uint8 (h, w, 3), into host memory (page-locked if the device is a GPU).

        Slides opened with cuCIM are read by this worker's reader processes, if it has any, all others in this thread.

        Raises
        ------
        TileReadError
            The pixels cannot be decoded.
        """
        by_process = self._readers is not None and job.meta.reader == "cucim"
        if self.device == "cpu" and not by_process:
            return read_working(slide, box, job.scale)
        out: npt.NDArray[np.uint8] = pinned_empty((box.h, box.w, 3), "uint8", self.device)
        if by_process and self._readers is not None:
            self._readers.read(job.meta.slide_id, box, out)
        else:
            np.copyto(out, read_working(slide, box, job.scale))
        return out

    def memory_facts(self) -> dict[str, int]:
        """Return the peak number of bytes of GPU memory of this process; an empty dict on the CPU."""
        if self.device == "cpu":
            return {}
        from wsiseg.backend.dlpack import pool_facts

        return {"device_peak_bytes": pool_facts(device_number(self.device))["peak_bytes"]}

    def separate_params(self, mpp_working: float) -> SeparateParams:
        """Return the separation parameters resolved for a working resolution."""
        if mpp_working not in self._params:
            self._params[mpp_working] = resolve_params(self.config.separate, self.model.separate_defaults, mpp_working)
        return self._params[mpp_working]

    def forget(self, slide_id: str) -> None:
        """Close a slide's handle so that the next tile opens it again."""
        self._slides.forget(slide_id)

    def close(self) -> None:
        """Close all handles and end the readers."""
        self._slides.close()
        if self._readers is not None:
            self._readers.close()

    def arithmetic(self) -> Processor:
        """Return the properties of this worker's processor on which its maps depend."""
        from wsiseg.predict import arithmetic_of

        model = self.model
        with self.turn():
            return arithmetic_of(model)

    def facts(self) -> ModelFacts:
        """Return what this worker would compute with; it is part of the run's digest."""
        model, aim = self.model, self.stain_aim
        return ModelFacts(
            model.name,
            model.sha256,
            model.mpp,
            aim.method,
            self.separate_params(model.mpp),
            aim.params,
            _quantization() if model.precision == "int8" else "",
        )

    def worker_facts(self, machine: str) -> WorkerFacts:
        """Return ``facts``, the resolved values of ``auto``, and ``machine``, the name of this machine."""
        processor = self.arithmetic()
        model = self.model
        return WorkerFacts(self.facts(), model.precision, model.engine, model.licence, processor, machine)

    @property
    def stain_aim(self) -> Stain:
        """Return the target stain to which slides are normalized."""
        return stain_aim(self.model, self.config)

    def _open_slide(self, slide_id: str) -> tuple[SlideJob, Slide]:
        job = load_job(self.folder, slide_id)
        return job, open_job_slide(job, self.config)


def _quantization() -> str:
    from wsiseg.predict import QUANTIZATION

    return QUANTIZATION
