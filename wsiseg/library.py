"""The functions for Python and notebooks: NumPy arrays and paths in, Arrow tables or GeoDataFrames out.

The command line calls the same functions with the same defaults; ``import wsiseg`` loads them when they are first used.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiseg.cluster.devices import compute_device
from wsiseg.config import RunConfig
from wsiseg.errors import InputError
from wsiseg.evaluation import Evaluation, evaluate_paths
from wsiseg.export import read_nuclei, read_slides
from wsiseg.labels import rasterize_rings
from wsiseg.metrics import Scores, instance_scores
from wsiseg.read import open_slide
from wsiseg.results.slide_input import ALL_TISSUE
from wsiseg.tables import wkb_rings

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from wsiseg.predict import Model
    from wsiseg.run.drive import Progress
    from wsiseg.run.segment import RunSummary

__all__ = ["evaluate", "label_image", "open_slide", "read_nuclei", "read_slides", "segment", "segment_image"]


def segment_image(
    rgb: npt.NDArray[np.uint8],
    mpp: float,
    *,
    weights: str = "default",
    config: RunConfig | None = None,
    tissue_mask: str = "",
    as_geopandas: bool = False,
) -> pa.Table | Any:
    """Segment one picture and return the rows that a run would write for it, without a run folder.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        H&E picture. It is processed in memory at once; use ``segment`` for more than about 100 million pixels.
    mpp
        Microns per pixel.
    weights
        ``default``, ``open``, ``research``, or a path to a ``.safetensors`` file. Ignored if ``config`` is given.
    config
        Options of any stage (``RunConfig.from_toml``).
    tissue_mask
        ``all``: segment every pixel; empty: segment only detected tissue, as in a run.
    as_geopandas
        Return a GeoDataFrame indexed by ``nucleus_id`` instead of a ``pyarrow.Table``.

    Returns
    -------
    pyarrow.Table or geopandas.GeoDataFrame
        One row per nucleus, with the columns of ``wsiseg.schema.NUCLEI``; coordinates in pixels of the picture.

    Raises
    ------
    InputError
        The array is not an RGB picture, ``mpp`` is not a positive number, or ``tissue_mask`` has another value.
    WeightsError, BackendUnavailableError
        The network cannot be loaded, or the device or precision is not available.

    Examples
    --------
    >>> import wsiseg
    >>> slide = wsiseg.open_slide("wsiseg/demo/atlas_metaplasia_HE_crop.svs")
    >>> rgb = slide.read_level(0, 1500, 1500, 300, 300)
    >>> nuclei = wsiseg.segment_image(rgb, mpp=slide.meta.mpp)
    >>> nuclei.num_rows > 20, float(np.median(nuclei["area_um2"])) > 10
    (True, True)
    """
    from wsiseg.pipeline import image_nuclei, map_image
    from wsiseg.separate import resolve_params
    from wsiseg.types import SlideMeta, Tile, TileStats
    from wsiseg.write import write_nuclei_table, write_part

    rgb = np.ascontiguousarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise InputError(f"segment_image: expected a picture uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}.")
    if not 0 < mpp < float("inf"):
        raise InputError(f"segment_image: expected mpp to be a positive number of um per pixel, got {mpp!r}.")
    if tissue_mask not in ("", ALL_TISSUE):
        raise InputError(f"segment_image: expected tissue_mask to be empty or {ALL_TISSUE!r}, got {tissue_mask!r}.")
    config = config or RunConfig(predict=dataclasses.replace(RunConfig().predict, weights=weights))
    model = _model(config)
    maps = map_image(rgb, mpp, model, config, everywhere=tissue_mask == ALL_TISSUE)
    batch = image_nuclei(maps, resolve_params(config.separate, model.separate_defaults, maps.mpp))
    tile = Tile("image", 0, maps.core, maps.core.padded(maps.halo_wpx), maps.scale, 1.0)
    meta = SlideMeta("image", "image", maps.shape[1], maps.shape[0], mpp, "user")
    with tempfile.TemporaryDirectory() as folder:  # uses the files of a run, so that rows are equal to those of a run
        part, table = Path(folder) / "part.parquet", Path(folder) / "image.parquet"
        write_part(part, batch, tile, TileStats(), {}, "image")
        write_nuclei_table([part], table, meta, maps.scale, {"weights": model.name}, config.write)
        return read_nuclei(table, as_geopandas=as_geopandas)


def label_image(nuclei: pa.Table, shape: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> npt.NDArray[np.int32]:
    """Draw nuclei as a label image: pixels whose center is in the polygon of row k have the value k + 1.

    Parameters
    ----------
    nuclei
        Rows with a column ``geometry``, as ``segment_image`` and ``read_nuclei`` return them.
    shape
        (H, W) of the image.
    origin
        Top-left corner (x, y) of the image, level-0 px.

    Returns
    -------
    int32 (H, W)
        0 for background.

    Examples
    --------
    >>> import shapely, pyarrow as pa, wsiseg
    >>> square = pa.table({"geometry": [shapely.to_wkb(shapely.box(1, 1, 3, 3))]})
    >>> int((wsiseg.label_image(square, (5, 5)) == 1).sum())
    4
    """
    if nuclei.num_rows == 0:
        return np.zeros(shape, np.int32)
    xy, offsets = wkb_rings(nuclei["geometry"])
    return rasterize_rings(xy - np.asarray(origin, np.float64), offsets, shape)


def segment(
    slides: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    mpp: float | None = None,
    cohort: str = "",
    tissue_mask: str | os.PathLike[str] = "",
    config: RunConfig | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Segment slides into a run folder, as ``wsiseg segment`` does; the same call resumes it.

    Worker processes are started: in a script, call it under ``if __name__ == "__main__":``.

    Parameters
    ----------
    slides
        Files, folders, globs or manifests.
    out
        Run folder.
    mpp, cohort
        Microns per level-0 px, and cohort, of slides for which no others are stated.
    tissue_mask
        A mask (PNG or GeoJSON), a folder of ``<slide_id>.png`` or ``.geojson``, or ``all`` to segment whole slides without a
        mask.
    config
        Options of any stage; None: the defaults of the command line.
    on_progress
        Called with running totals after every task.

    Returns
    -------
    RunSummary
        Statistics of each slide (``rows``), failures (``errors``), and whether every slide is done or blank (``ok``).

    Raises
    ------
    WsisegError
        The run could not start or continue. A slide that fails does not raise; its row has the status ``failed``.

    Examples
    --------
    >>> import wsiseg
    >>> summary = wsiseg.segment("wsiseg/demo", "RUN")                              # doctest: +SKIP
    >>> [(row.slide_id, row.status, row.n_nuclei) for row in summary.rows]   # doctest: +SKIP
    """
    from wsiseg.results.manifest import find_slides
    from wsiseg.run.segment import segment as run_segment

    names = [slides] if isinstance(slides, str | os.PathLike) else list(slides)
    found = find_slides([os.fspath(n) for n in names], mpp=mpp, cohort=cohort, tissue_mask=os.fspath(tissue_mask))
    return run_segment(found.slides, Path(out), config or RunConfig(), on_progress=on_progress)


def evaluate(
    prediction: npt.ArrayLike | str | os.PathLike[str], truth: npt.ArrayLike | str | os.PathLike[str]
) -> Scores | Evaluation:
    """Score instances against true ones: two label images, or two files or folders of them.

    Parameters
    ----------
    prediction, truth
        Both integer arrays (H, W), 0 background; or both paths to anything that ``wsiseg evaluate`` reads.

    Returns
    -------
    Scores or Evaluation
        For arrays: ``pq``, ``aji``, ``aji_plus``, ``dice``, ``f1``, ``n_truth``, ...; for paths: these per image, and a
        summary.

    Raises
    ------
    FormatError
        Shapes differ, files do not pair, or one cannot be read.

    Examples
    --------
    >>> import numpy as np, wsiseg
    >>> truth = np.kron(np.arange(4).reshape(2, 2), np.ones((8, 8), int))
    >>> wsiseg.evaluate(truth, truth).pq
    1.0
    """
    paths = [isinstance(side, str | os.PathLike) for side in (prediction, truth)]
    if all(paths):
        return evaluate_paths(prediction, truth)  # type: ignore[arg-type]
    if any(paths):
        raise InputError("evaluate: expected two arrays or two paths, got one of each.")
    return instance_scores(prediction, truth)  # type: ignore[arg-type]


def _model(config: RunConfig) -> Model:
    return _loaded(config.predict, compute_device(config))


@lru_cache(maxsize=2)
def _loaded(predict: Any, device: str) -> Model:
    """Return the network, which is cached, because a notebook segments many pictures with the same one."""
    from wsiseg.predict import load_model

    return load_model(predict, device)
