"""Threads that share an open slide: a window that cannot be decoded fails for the thread that asked for it, for no other."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest

from tests.damage import with_damaged_tiles
from wsiseg.errors import TileReadError
from wsiseg.read import open_slide

CMU = Path(__file__).parents[2] / "tests/data/CMU-1-Small-Region.svs"
DAMAGED, GOOD = (0, 1210, 490, 100, 90), (0, 300, 100, 200, 200)


@pytest.fixture
def damaged(tmp_path):
    """A real slide with one tile (column 5, row 2) whose second half is zeros."""
    return with_damaged_tiles(CMU, tmp_path / "damaged.svs", tile=(5, 2))


def right_pixels():
    with openslide.OpenSlide(CMU) as slide:
        return np.asarray(slide.read_region(GOOD[1:3], 0, GOOD[3:]).convert("RGB"))


class _Delayed:
    """A handle whose ``read_region`` signals its call and waits before it reads."""

    def __init__(self, handle):
        self._handle, self.called, self.go_on = handle, threading.Event(), threading.Event()

    def read_region(self, *window):
        self.called.set()
        assert self.go_on.wait(30)
        return self._handle.read_region(*window)

    def close(self):
        self._handle.close()


def test_a_failed_handle_stays_open_for_the_thread_that_reads_with_it(damaged):
    slide = open_slide(damaged, reader="openslide")
    handle = slide._handle
    slide._handle = delayed = _Delayed(handle)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(slide.read_level, *GOOD)
        assert delayed.called.wait(30)
        slide._handle = handle  # the same handle of the library: the other thread is inside its call
        with pytest.raises(TileReadError, match="x=1210 y=490"):
            slide.read_level(*DAMAGED)
        assert slide._handle is not handle
        delayed.go_on.set()
        np.testing.assert_array_equal(reading.result(30), right_pixels())
    np.testing.assert_array_equal(slide.read_level(*GOOD), right_pixels())
    slide.close()


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_two_threads_one_of_them_failing(damaged, reader):
    slide = open_slide(damaged, reader=reader)
    start = threading.Barrier(2)

    def read(window):
        start.wait(30)
        found = []
        for _ in range(40):
            try:
                found.append(slide.read_level(*window))
            except TileReadError as err:
                found.append(str(err))
        return found

    with ThreadPoolExecutor(2) as pool:
        bad, good = (pool.submit(read, window) for window in (DAMAGED, GOOD))
        assert all(isinstance(got, str) and "x=1210 y=490 w=100 h=90" in got for got in bad.result(60))
        for got in good.result(60):
            np.testing.assert_array_equal(got, right_pixels())
    slide.close()
