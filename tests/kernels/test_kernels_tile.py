"""A whole tile, from slide to part file, with ``device`` a GPU that is a stand-in: the CPU's polygons in every bit.

Everything but the hardware takes part: where arrays go, turns, pinned copies, the kernels' own text, memory that runs out. The
network runs on the CPU through DLPack.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.fake_cupy import FakeArray, FakeOutOfMemoryError, fake_cupy
from tests.kernels.host import on_host
from wsiseg.backend import cuda, register_backend
from wsiseg.config import NormalizeConfig, PredictConfig, ReadConfig, RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.run.tile import run_tile
from wsiseg.types import Box, PolygonBatch, Stain
from wsiseg.write import read_part

ROOT = Path(__file__).parents[2]
SLIDE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"
TILE_ID = 66  # all tissue
CONFIG = RunConfig(
    read=ReadConfig(tile_wpx=400),
    normalize=NormalizeConfig(method="reinhard"),
    predict=PredictConfig(precision="fp32", window_wpx=256),
)


def segmented(out: Path, device: str) -> tuple[PolygonBatch, Any]:
    """Segment one tile of real tissue; return its nuclei and the part's header."""
    folder = RunFolder(out)
    folder.create()
    context = WorkerContext(folder, CONFIG, "tile", device, readers=0)
    try:
        job = prepare_slide(SlideInput(SLIDE.stem, str(SLIDE)), folder, CONFIG, 0.25, Stain("reinhard"))
        tile = tiles_of(job, CONFIG)[TILE_ID]
        outcome = run_tile(tile, context)
        assert outcome.status == "done", outcome.error
    finally:
        context.close()
    header, batch = read_part(folder.part(tile.slide_id, tile.tile_id))
    return batch, header


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolygonBatch, Any]:
    return segmented(tmp_path_factory.mktemp("cpu"), "cpu")


@pytest.fixture
def stand_in(kernel_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make ``cuda:1`` a device that is this host."""
    import wsiseg.predict.gpu as gpu
    from wsiseg.predict import load_model

    with on_host(kernel_library, seed=5) as host:
        module = fake_cupy(host)
        monkeypatch.setitem(sys.modules, "cupy", module)
        cuda._made.cache_clear()
        register_backend(FakeArray, lambda array: cuda.cuda_backend(array.device.id))
        monkeypatch.setattr(gpu, "ready_device", lambda config, *_: (load_model(config, "cpu"), [None]))
        monkeypatch.setattr(WorkerContext, "memory_facts", lambda self: {"device_peak_bytes": 3 * 2**30})
        yield host
        cuda._made.cache_clear()


def same(got: PolygonBatch, expected: PolygonBatch) -> None:
    assert len(got) == len(expected) > 20
    np.testing.assert_array_equal(got.xy, expected.xy)
    for name, values in expected.columns.items():
        assert got.columns[name].tobytes() == values.tobytes(), name


def test_device_path_gives_the_cpus_part(stand_in: Any, on_cpu: tuple[PolygonBatch, Any], tmp_path: Path) -> None:
    batch, header = segmented(tmp_path, "cuda:1")
    same(batch, on_cpu[0])
    assert header.stats == on_cpu[1].stats
    assert header.events == {"device_peak_bytes": 3 * 2**30}
    assert on_cpu[1].events == {}
    assert {"transfer_log_lms", "flood_round", "ring_corners", "row_sums"} <= set(stand_in.launches)


def test_memory_that_runs_out_behind_the_network(
    stand_in: Any, on_cpu: tuple[PolygonBatch, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = stand_in.launch

    def full(name: str, *rest: Any) -> None:
        if name == "landscape":
            raise FakeOutOfMemoryError("Out of memory allocating 64,000,000 bytes")
        launch(name, *rest)

    monkeypatch.setattr(stand_in, "launch", full)
    batch, header = segmented(tmp_path, "cuda:1")
    same(batch, on_cpu[0])
    assert header.events["separated_on_cpu"] == 1


def test_memory_that_runs_out_before_and_after(
    stand_in: Any, on_cpu: tuple[PolygonBatch, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In upload, stain and sums: what does not fit is done on the host, to the same bits."""
    launch = stand_in.launch

    def full(name: str, *rest: Any) -> None:
        if name in ("transfer_log_lms", "row_sums"):
            raise FakeOutOfMemoryError("Out of memory allocating 64,000,000 bytes")
        launch(name, *rest)

    monkeypatch.setattr(stand_in, "launch", full)
    batch, header = segmented(tmp_path / "stain", "cuda:1")
    same(batch, on_cpu[0])
    assert header.stats == on_cpu[1].stats
    assert header.events["kept_on_host"] == 1

    def full_behind(name: str, *rest: Any) -> None:
        if name == "row_sums":
            raise FakeOutOfMemoryError("Out of memory allocating 64,000,000 bytes")
        launch(name, *rest)

    monkeypatch.setattr(stand_in, "launch", full_behind)
    batch, header = segmented(tmp_path / "sums", "cuda:1")
    same(batch, on_cpu[0])
    assert header.stats == on_cpu[1].stats
    assert header.events == {"summed_on_cpu": 1, "device_peak_bytes": 3 * 2**30}

    def no_upload(self: Any, array: np.ndarray) -> Any:
        raise FakeOutOfMemoryError("Out of memory allocating 64,000,000 bytes")

    monkeypatch.setattr(stand_in, "launch", launch)
    monkeypatch.setattr(cuda.CudaBackend, "upload", no_upload)
    batch, header = segmented(tmp_path / "upload", "cuda:1")
    same(batch, on_cpu[0])
    assert header.events["kept_on_host"] == 1


def test_a_gpu_sees_windows_of_one_size_and_the_tiling_cannot_be_seen(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library chooses kernels by size: windows are not cut to the tissue."""
    import wsiseg.predict.gpu as gpu
    from wsiseg.predict import load_model

    sizes: set[tuple[int, ...]] = set()

    def spied(config: Any, *_: Any) -> Any:
        model = load_model(config, "cpu")

        def graph(rgb: Any, margin: int) -> Any:
            sizes.add(tuple(rgb.shape))
            return model.graph(rgb, margin)

        return dataclasses.replace(model, graph=graph, device="cuda:1"), [None]

    monkeypatch.setattr(gpu, "ready_device", spied)
    expected = nuclei_of(tmp_path / "cpu", "cpu", 700)
    assert len(expected) > 5
    for tile_wpx in (256, 300):
        assert nuclei_of(tmp_path / str(tile_wpx), "cuda:1", tile_wpx) == expected
    assert len(sizes) == 1


def nuclei_of(out: Path, device: str, tile_wpx: int) -> set[tuple[Any, ...]]:
    """Segment the tiles over a corner of the slide; return area and place of its nuclei, whichever tile they are in."""
    config = dataclasses.replace(CONFIG, read=ReadConfig(tile_wpx=tile_wpx))
    folder = RunFolder(out)
    folder.create()
    context = WorkerContext(folder, config, "tile", device, readers=0)
    found: set[tuple[Any, ...]] = set()
    try:
        job = prepare_slide(SlideInput(SLIDE.stem, str(SLIDE)), folder, config, 0.25, Stain("reinhard"))
        corner = Box(2480, 2060, 200, 180)  # all tissue, over borders of tiles
        for tile in tiles_of(job, config):
            meets = tile.core.x < corner.x1 and corner.x < tile.core.x1 and tile.core.y < corner.y1 and corner.y < tile.core.y1
            if not meets or tile.tissue_frac == 0:
                continue
            assert run_tile(tile, context).status == "done"
            columns = read_part(folder.part(tile.slide_id, tile.tile_id))[1].columns
            x, y = columns["nucleus_id"] % 2**31, columns["nucleus_id"] // 2**31
            inside = (x >= corner.x) & (x < corner.x1) & (y >= corner.y) & (y < corner.y1)
            found |= set(zip(*(v[inside].tolist() for v in (x, y, columns["area_wpx"])), strict=True))
    finally:
        context.close()
    return found


BARE = """
import ctypes, dataclasses, sys
sys.modules.update(dict.fromkeys({without!r}))  # importing any of them now fails
from pathlib import Path
from benchmarks import gpu_end_to_end
from tests.kernels.fake_cupy import FakeArray, fake_cupy
from tests.kernels.host import on_host
from wsiseg.backend import cuda, register_backend
from wsiseg.config import RunConfig
from wsiseg.run import tile as tile_module
from wsiseg.run.context import WorkerContext
from wsiseg.results.folder import RunFolder
from wsiseg.run.job import load_job, tiles_of
import wsiseg.predict.gpu as gpu
from wsiseg.predict import load_model
tile_module.write_part = gpu_end_to_end.raw_part
gpu.ready_device = lambda config, *_: (load_model(config, "cpu"), [None])
WorkerContext.memory_facts = lambda self: {{}}
with on_host(ctypes.CDLL({library!r}), seed=2) as host:
    sys.modules["cupy"] = fake_cupy(host)
    register_backend(FakeArray, lambda array: cuda.cuda_backend(array.device.id))
    config = RunConfig.from_dict({config!r})
    context = WorkerContext(RunFolder(Path({folder!r})), config, "bare", "cuda:1", readers=0)
    job = load_job(context.folder, {slide_id!r})
    tile = tiles_of(job, config)[{tile_id}]
    outcome = tile_module.run_tile(tile, context)
    assert outcome.status == "done", outcome.error
    print(context.folder.part(tile.slide_id, tile.tile_id))
"""
ABSENT = ("numba", "pyarrow", "shapely", "dask", "distributed", "zarr", "skimage", "pandas", "psutil", "rich", "duckdb")
ABSENT += ("imagecodecs", "geopandas", "matplotlib", "cv2", "tiffslide")


def test_bare_machine_runs_the_whole_path(
    kernel_library: ctypes.CDLL, on_cpu: tuple[PolygonBatch, Any], tmp_path: Path
) -> None:
    """What ``benchmarks/gpu_end_to_end.py`` needs of a machine: torch, CuPy, NumPy, SciPy, safetensors and what it carries."""
    folder = RunFolder(tmp_path)
    folder.create()
    prepare_slide(SlideInput(SLIDE.stem, str(SLIDE)), folder, CONFIG, 0.25, Stain("reinhard"))
    config = json.loads(json.dumps(CONFIG.as_dict()))
    code = BARE.format(
        without=ABSENT, library=kernel_library._name, config=config, folder=str(tmp_path), slide_id=SLIDE.stem, tile_id=TILE_ID
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(done.stdout.strip()) as columns:
        batch = PolygonBatch(columns["xy"], columns["ring_offsets"], {})
        expected = on_cpu[0]
        same(batch, dataclasses.replace(expected, columns={}))
        assert columns["material_prob"].tobytes() == expected.columns["material_prob"].tobytes()
