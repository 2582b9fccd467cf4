"""Stand-in for the parts of PyTorch that the package uses on a GPU: streams, the memory pool, graphs, tensors by DLPack.

The PyTorch of the tests has no CUDA. These are its functions of the same names, as its documentation describes them: memory
that is freed is handed out again at once, but only for the stream that it was taken for; the network runs on the host behind
what was launched on its stream.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.kernels.rehearsal import StandIn

BLOCK = 512


class Stream:
    """``torch.cuda.Stream``."""

    def __init__(self, gpu: StandIn, pointer: int) -> None:
        self._gpu = gpu
        self.cuda_stream = pointer
        self.device = SimpleNamespace(index=0)

    def synchronize(self) -> None:
        self._gpu.synchronize(self.cuda_stream)


class Torch:
    """The pool, the current streams of threads, and the functions that ``install`` puts into ``torch``."""

    def __init__(self, gpu: StandIn) -> None:
        self.gpu = gpu
        self.free: dict[tuple[int, int], list[int]] = {}
        self.taken: dict[int, tuple[int, int]] = {}
        self.most = 1 << 60
        self.held = self.used = self.peak = 0
        self.default = Stream(gpu, 0)
        self.local = threading.local()
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.lock = threading.RLock()

    def current(self, device: Any = None) -> Stream:
        return getattr(self.local, "stream", self.default)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current()
        self.local.stream = stream
        try:
            yield
        finally:
            self.local.stream = before

    def allocate(self, n_bytes: int, device: Any, stream: Stream) -> int:
        """Hand out what was freed on the stream, else new memory."""
        key = (stream.cuda_stream, -(-max(n_bytes, 1) // BLOCK) * BLOCK)
        with self.lock:
            again = self.free.get(key, [])
            if not again and self.held + key[1] > self.most:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {n_bytes} bytes")
            if again:
                pointer = again.pop()
            else:
                pointer = self.gpu.allocate(key[1])
                self.held += key[1]
            self.taken[pointer] = key
            self.used += key[1]
            self.peak = max(self.peak, self.held)
            return pointer

    def delete(self, pointer: int) -> None:
        with self.lock:
            key = self.taken.pop(pointer)
            self.used -= key[1]
            self.free.setdefault(key, []).append(pointer)

    def empty_cache(self) -> None:
        with self.lock:
            for (_, size), pointers in self.free.items():
                for pointer in pointers:
                    self.gpu.free(pointer)
                    self.held -= size
            self.free.clear()

    def run(self, function: Callable[[], None]) -> None:
        """Do something on the current stream."""
        stream = self.current().cuda_stream
        if stream in self.recording:
            self.recording[stream].append(function)
        else:
            self.gpu.call(stream, function)

    def new(self, shape: tuple[int, ...]) -> Tensor:
        n_bytes = math.prod(shape)
        return Tensor(self, self.allocate(n_bytes, 0, self.current()), shape, self)

    def from_dlpack(self, array: Any) -> Tensor:
        """As ``torch.from_dlpack``: the other library gets the stream that will use the array."""
        kind, number = array.__dlpack_device__()
        assert (int(kind), number) == (2, 0), "CUDA's GPU 0"
        array.__dlpack__(stream=self.current().cuda_stream)
        assert array.flags.c_contiguous
        return Tensor(self, array.data.ptr, tuple(array.shape), array)

    @contextmanager
    def graph(self, graph: Graph, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert stream.cuda_stream != 0, "PyTorch refuses to record on the default stream"
        assert capture_error_mode == "thread_local"
        graph.steps = self.recording[stream.cuda_stream] = []
        with self.stream(stream):
            yield
        del self.recording[stream.cuda_stream]


class Graph:
    """``torch.cuda.CUDAGraph``."""

    torch: Torch

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        for step in self.steps:
            self.torch.run(step)


class Tensor:
    """uint8 on the device; ``owner`` keeps the memory."""

    def __init__(self, made_by: Torch, pointer: int, shape: tuple[int, ...], owner: Any) -> None:
        self.torch, self.pointer, self.shape, self.owner = made_by, pointer, shape, owner

    def __del__(self) -> None:
        if self.owner is self.torch:
            self.torch.delete(self.pointer)

    def view(self) -> np.ndarray:
        """The memory as it is now: for functions that run behind what was launched."""
        n = math.prod(self.shape)
        return np.frombuffer((ctypes.c_ubyte * n).from_address(self.pointer), np.uint8).reshape(self.shape)

    def clone(self) -> Tensor:
        out = self.torch.new(self.shape)
        out.copy_(self)
        return out

    def copy_(self, other: Tensor) -> None:
        mine, theirs = self.view(), other.view()
        self.torch.run(lambda: np.copyto(mine, theirs))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """As PyTorch exports: the stream that will use it must be the one that made it, or wait for it."""
        import cupy

        assert stream == self.torch.current().cuda_stream, "used on another stream than the one that made it"
        memory = cupy.cuda.UnownedMemory(self.pointer, math.prod(self.shape), self, 0)
        array = cupy.ndarray(self.shape, np.uint8, cupy.cuda.MemoryPointer(memory, 0))
        return array.__dlpack__(stream=stream)


def network(made_by: Torch, forward: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Let a network of the host compute on the device: behind what was launched on the stream, into memory of the pool."""

    def run(rgb: Tensor, margin: int) -> Tensor:
        out = made_by.new((2, rgb.shape[0] - 2 * margin, rgb.shape[1] - 2 * margin))
        given, taken = rgb.view(), out.view()

        def compute() -> None:
            with torch.inference_mode():
                taken[...] = forward(torch.from_numpy(given.copy()), margin).numpy()

        made_by.run(compute)
        return out

    return run


def install(gpu: StandIn) -> Torch:
    """Put the stand-in's functions into ``torch`` for the rest of this process."""
    made = Torch(gpu)
    Graph.torch = made
    cuda: Any = torch.cuda
    cuda.Stream = lambda device=None: Stream(gpu, gpu.create_stream())
    cuda.stream, cuda.current_stream, cuda.graph, cuda.CUDAGraph = made.stream, made.current, made.graph, Graph
    cuda.caching_allocator_alloc, cuda.caching_allocator_delete = made.allocate, made.delete
    cuda.empty_cache, cuda.is_available, cuda.synchronize = made.empty_cache, lambda: True, lambda device=None: None
    cuda.mem_get_info = lambda device=None: (gpu.free_bytes(), gpu.total_bytes)
    cuda.get_device_properties = lambda device=None: SimpleNamespace(total_memory=gpu.total_bytes)
    cuda.memory_allocated, cuda.memory_reserved = lambda device=None: made.used, lambda device=None: made.held
    cuda.max_memory_reserved = lambda device=None: made.peak

    def bound(fraction: float, device: Any = None) -> None:
        made.most = int(fraction * gpu.total_bytes)

    cuda.set_per_process_memory_fraction = bound
    torch.version.cuda = "13.0"
    torch.from_dlpack = made.from_dlpack  # type: ignore[assignment]
    return made
