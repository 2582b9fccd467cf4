"""Processes that read pixels for one worker, because cuCIM decodes a large region faster in processes but not in threads.

A reader is a Python process that runs only the read stage (no PyTorch, no GPU). It receives requests as lines on its standard
input and writes the pixels into shared memory. When the worker ends for any reason, the reader's input ends and it exits.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.config import RunConfig
from wsiseg.errors import TileReadError, WsisegError, one_line
from wsiseg.read import read_working
from wsiseg.results.folder import RunFolder
from wsiseg.run.handles import OpenSlides
from wsiseg.run.job import load_job, open_job_slide
from wsiseg.types import Box

__all__ = ["ReaderPool", "can_share_memory"]

_SLIDES = 2
_CODE = "from wsiseg.run.readers import serve; serve()"


def can_share_memory() -> bool:
    """Return whether this system has what readers need (Linux)."""
    return hasattr(os, "memfd_create")


class ReaderPool:
    """Up to ``max_readers`` reader processes for the slides of one run folder, started when they are first needed.

    All threads of a worker share it: each call uses an idle reader, or waits for one.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, max_readers: int) -> None:
        self._command = {"folder": str(folder.root), "config": config.as_dict()}
        self._idle: queue.LifoQueue[_Reader | None] = queue.LifoQueue()
        self._readers: list[_Reader] = []
        self._lock = threading.Lock()
        for _ in range(max_readers):
            self._idle.put(None)  # None: whoever takes it starts the process

    def read(self, slide_id: str, box: Box, out: npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` uint8 (box.h, box.w, 3) with working px of a prepared slide.

        Raises
        ------
        TileReadError
            The pixels cannot be read, or the reader process ended; the next call starts a new one.
        """
        reader = self._idle.get()
        try:
            if reader is None:
                reader = _Reader(self._command)
                with self._lock:
                    self._readers.append(reader)
            reader.read(slide_id, box, out)
        except BrokenPipeError as err:
            if reader is not None:
                self._drop(reader)
            reader = None
            raise TileReadError(
                f"slide {slide_id}, {box}: the process that read it ended; the next try starts a new one"
            ) from err
        finally:
            self._idle.put(reader)

    def close(self) -> None:
        """End all readers."""
        for reader in list(self._readers):
            self._drop(reader)

    def _drop(self, reader: _Reader) -> None:
        with self._lock:
            self._readers.remove(reader)
        reader.close()


class _Reader:
    """One process and the memory shared with it."""

    def __init__(self, command: dict[str, Any]) -> None:
        self._memory = os.memfd_create("wsiseg-pixels")
        self._size = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=False,
        )
        self._ask({**command, "memory": f"/proc/{os.getpid()}/fd/{self._memory}"})

    def read(self, slide_id: str, box: Box, out: npt.NDArray[np.uint8]) -> None:
        if out.nbytes > self._size:
            os.ftruncate(self._memory, out.nbytes)
            self._size = out.nbytes
        error = self._ask({"slide_id": slide_id, "box": [box.x, box.y, box.w, box.h]})
        if error:
            raise TileReadError(error)
        with mmap.mmap(self._memory, out.nbytes, prot=mmap.PROT_READ) as pixels:
            np.copyto(out, np.frombuffer(pixels, np.uint8).reshape(out.shape))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()  # safe: it only has files open for reading
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # input that it has not read
            self._process.stdin.close()
        self._process.stdout.close()
        os.close(self._memory)

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise BrokenPipeError("the reader process ended")
        return str(json.loads(answer))


def serve() -> None:
    """Process requests until the input ends; this is the main function of a reader process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout is for answers only: what libraries print goes to stderr
    command = json.loads(sys.stdin.readline())
    folder, config = RunFolder(Path(command["folder"])), RunConfig.from_dict(command["config"])

    def opened(slide_id: str) -> Any:
        job = load_job(folder, slide_id)
        return job, open_job_slide(job, config)

    slides = OpenSlides(opened, _SLIDES)
    memory = os.open(command["memory"], os.O_RDWR)
    _answer(answers, "")
    for line in sys.stdin:
        request = json.loads(line)
        slide_id, box = request["slide_id"], Box(*request["box"])
        try:
            with slides.lease(slide_id) as (job, slide):
                pixels = read_working(slide, box, job.scale)
            with mmap.mmap(memory, pixels.nbytes) as shared:
                np.copyto(np.frombuffer(shared, np.uint8).reshape(pixels.shape), pixels)
        except (WsisegError, OSError, MemoryError) as err:
            slides.forget(slide_id)
            _answer(answers, one_line(err))
        else:
            _answer(answers, "")
    slides.close()


def _answer(answers: Any, text: str) -> None:
    answers.write(json.dumps(text) + "\n")
    answers.flush()
