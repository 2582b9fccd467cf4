"""Record the network's kernels as a CUDA graph, once per window size, and start them all at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from wsiseg.errors import one_line
from wsiseg.log import log

__all__ = ["CapturedGraph", "record_on_gpu"]

Forward = Callable[[torch.Tensor, int], torch.Tensor]
Recorder = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], Any], torch.Tensor]]


class CapturedGraph:
    """A network that runs from CUDA graphs, or directly if recording fails. The caller owns the result.

    A recording reads and writes fixed memory, so there is one for each size and each stream: tiles that are on the device at
    the same time use different streams.

    Parameters
    ----------
    forward
        ``(rgb uint8 (H, W, 3), margin) -> maps``.
    record
        ``record(function) -> (replay, output)``: runs ``function`` once so that ``replay()`` does the same to ``output``.
    stream_of
        Returns an id of the current stream.
    """

    def __init__(self, forward: Forward, record: Recorder, stream_of: Callable[[], int]) -> None:
        self._forward = forward
        self._record = record
        self._stream_of = stream_of
        self._recorded: dict[tuple[Any, ...], tuple[torch.Tensor, Callable[[], Any], torch.Tensor]] = {}
        self._unrecorded: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()

    def __call__(self, rgb: torch.Tensor, margin: int) -> torch.Tensor:
        """Return the maps of a window."""
        key = (tuple(rgb.shape), margin, self._stream_of())
        entry = self._recorded.get(key)
        if entry is None and key not in self._unrecorded:
            fixed = rgb.clone()
            try:
                with self._lock:
                    replay, out = self._record(lambda: self._forward(fixed, margin))
            except RuntimeError as err:  # memory, or something that cannot be recorded; a broken GPU fails again below
                log.warning("a window of %s px cannot be recorded as a CUDA graph (%s)", tuple(rgb.shape), one_line(err))
                self._unrecorded.add(key)
        if key in self._unrecorded:
            return self._forward(rgb, margin)
        if entry is None:
            self._forget_others(key)
            entry = self._recorded[key] = fixed, replay, out
        fixed, replay, out = entry
        fixed.copy_(rgb)
        replay()
        return out.clone()

    def _forget_others(self, key: tuple[Any, ...]) -> None:
        """Drop a stream's recordings of other sizes: windows only shrink, and each recording keeps its memory.

        The recorder has waited for the stream, so none of them runs.
        """
        for other in [k for k in list(self._recorded) if k[-1] == key[-1] and k != key]:
            del self._recorded[other]


def record_on_gpu(function: Callable[[], torch.Tensor]) -> tuple[Callable[[], Any], torch.Tensor]:
    """Record the kernels that ``function`` starts on the current stream; other threads may use their streams meanwhile."""
    function()  # cuDNN chooses its kernels outside the recording
    torch.cuda.current_stream().synchronize()
    torch.cuda.empty_cache()  # a recording has its own memory: free that of the trial run first
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        out = function()
    return graph.replay, out
