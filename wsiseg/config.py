"""All options, with default, unit and meaning, in one frozen value.

``RunConfig`` holds one frozen dataclass per stage. ``RunConfig.digest()`` covers exactly the fields that change results; fields
with the metadata ``results=False`` (workers, retries, ...) are left out, so they may differ between a run and its resume.
TOML in (``RunConfig.from_toml``), TOML-ready dict out (``as_dict``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsiseg.decode import fits, type_words
from wsiseg.errors import ConfigError

__all__ = [
    "NormalizeConfig",
    "PredictConfig",
    "ReadConfig",
    "RunConfig",
    "ScheduleConfig",
    "SeparateConfig",
    "VectorizeConfig",
    "WriteConfig",
]

_SIDE_EFFECT_FREE: dict[str, bool] = {"results": False}


def _free(default: Any) -> Any:
    """Return a field that does not change results and so stays out of the digest."""
    return field(default=default, metadata=_SIDE_EFFECT_FREE)


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How pixels are read.

    Attributes
    ----------
    tile_wpx
        Side of a tile's core, working px.
    halo_wpx
        Context around the core on which nuclei are separated, working px: at least the largest nucleus plus smoothing.
    mpp
        Microns per level-0 px that the user gives for slides whose file states none or a wrong value; ``None``: from the file.
    mpp_tolerance_frac
        A slide whose mpp is within this fraction of the model's is used at its native pixels (polygons are then exact level-0
        pixel edges); beyond it, pixels are resampled to the model's mpp.
    reader
        ``auto`` uses cuCIM's CuImage if it reads the file, else OpenSlide; their pixels are equal.
    tissue_min_frac
        Tiles with less tissue than this fraction of their core are recorded as empty without being predicted.
    """

    tile_wpx: int = 4000
    halo_wpx: int = 64
    mpp: float | None = None
    mpp_tolerance_frac: float = 0.10
    reader: Literal["auto", "cucim", "openslide"] = "auto"
    tissue_min_frac: float = 0.0
    cache_bytes: int = _free(64 * 1024 * 1024)

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for impossible values."""
        _require(64 <= self.tile_wpx <= 16384, "read.tile_wpx", "64 to 16384 working px", self.tile_wpx)
        _require(0 <= self.halo_wpx <= 1024, "read.halo_wpx", "0 to 1024 working px", self.halo_wpx)
        _require(self.mpp is None or 0.01 < self.mpp < 100, "read.mpp", "0.01 to 100 um/px", self.mpp)
        _require(0 <= self.mpp_tolerance_frac < 0.5, "read.mpp_tolerance_frac", "0 to 0.5", self.mpp_tolerance_frac)
        _require(0 <= self.tissue_min_frac <= 1, "read.tissue_min_frac", "0 to 1", self.tissue_min_frac)
        _require(self.cache_bytes >= 0, "read.cache_bytes", "0 bytes or more", self.cache_bytes)


@dataclass(frozen=True, slots=True)
class NormalizeConfig:
    """Stain normalization; ``auto`` is the method that the weights were trained for."""

    method: Literal["auto", "none", "reinhard", "macenko"] = "auto"


@dataclass(frozen=True, slots=True)
class PredictConfig:
    """The network and how it is run.

    Attributes
    ----------
    weights
        ``default``, ``open``, ``research``, or a path to a ``.safetensors`` file with its ``.json`` card in the same folder.
    precision
        ``auto`` is resolved once per run to the fastest on the machine, and recorded, so that a resumed run keeps it.
    engine
        ``eager``, ``inductor`` (compiled by torch at start), or on a GPU ``graph`` (CUDA graphs); ``auto`` is resolved and
        recorded in the same way.
    window_wpx
        Side of the useful area of one network window, working px, a multiple of 16; 0: chosen by the engine, on a GPU by its
        free memory.
    tta
        Test-time augmentation: mean over 1 or 8 flips and rotations.
    """

    weights: str = "default"
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    engine: Literal["auto", "eager", "inductor", "graph"] = "auto"
    window_wpx: int = _free(0)
    tta: Literal[1, 8] = 1

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for impossible values."""
        _require(self.window_wpx % 16 == 0 and self.window_wpx >= 0, "predict.window_wpx", "a multiple of 16", self.window_wpx)


@dataclass(frozen=True, slots=True)
class SeparateConfig:
    """Probability maps to instances. ``None``: the value fitted for the weights, stored in their card.

    Attributes
    ----------
    center_threshold_frac, material_threshold_frac
        Thresholds on the smoothed center map (a marker) and the smoothed material map (nuclear material), 0 to 1.
    marker_radius_wpx
        A marker is the maximum of its (2 r + 1) square neighborhood.
    compactness
        Weight c of the distance to the nearest marker in the landscape 16 (255 - material) + 16 c distance.
    merge_depth_frac
        Two center maxima whose saddle is less deep than this are one nucleus, 0 (never) to 1.
    merge_share_frac
        Two center maxima are also one nucleus if the map between them falls by less than this share of the lower one, 0 (never)
        to 1.
    min_area_um2, max_area_um2
        Limits on the hole-filled area of a nucleus.
    min_material_frac
        Minimum mean material probability of a nucleus, 0 to 1; nuclei with a lower one are removed.
    """

    center_threshold_frac: float | None = None
    material_threshold_frac: float | None = None
    marker_radius_wpx: int | None = None
    compactness: float | None = None
    merge_depth_frac: float | None = None
    merge_share_frac: float | None = None
    seed_recall: bool = True
    min_area_um2: float | None = None
    max_area_um2: float = 1000.0
    min_material_frac: float | None = None

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for impossible values."""
        for name in ("center_threshold_frac", "material_threshold_frac"):
            value = getattr(self, name)
            _require(value is None or 0 < value < 1, f"separate.{name}", "0 to 1 (exclusive)", value)
        _require(
            self.marker_radius_wpx is None or 1 <= self.marker_radius_wpx <= 32,
            "separate.marker_radius_wpx",
            "1 to 32",
            self.marker_radius_wpx,
        )
        _require(self.compactness is None or 0 <= self.compactness <= 16, "separate.compactness", "0 to 16", self.compactness)
        for name in ("merge_depth_frac", "merge_share_frac", "min_material_frac"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, f"separate.{name}", "0 to 1", value)


@dataclass(frozen=True, slots=True)
class VectorizeConfig:
    """Instances to polygons and per-nucleus columns (nothing to choose yet)."""


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """Layout of the tables, and files written in addition; the tables' content does not depend on it.

    Attributes
    ----------
    row_group_rows, zstd_level
        Rows of a row group, and the level of compression.
    keep_parts
        Keep the files of tiles when a slide is finished.
    features
        Measure what ``wsiseg features`` measures while a tile's pixels are in memory.
    """

    row_group_rows: int = _free(16384)
    zstd_level: int = _free(9)
    keep_parts: bool = _free(False)
    features: bool = _free(False)

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for impossible values."""
        _require(self.row_group_rows >= 1, "write.row_group_rows", "1 or more", self.row_group_rows)
        _require(1 <= self.zstd_level <= 22, "write.zstd_level", "1 to 22", self.zstd_level)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """Devices, workers and schedulers; nothing here changes results.

    Attributes
    ----------
    device
        ``auto``: a GPU if PyTorch and CuPy can use one, else the CPU.
    gpus
        Numbers of the GPUs to use, ``"0,2"``, among those that ``CUDA_VISIBLE_DEVICES`` shows; empty: all.
    workers
        Worker processes on the CPU; 0: one per core. On GPUs there are ``workers_per_gpu`` for each.
    workers_per_gpu
        Number of worker processes that share a GPU. 0: up to three, one for each 4 cores and 16 GiB of the GPU's memory; one
        for the workers of a scheduler.
    threads_per_worker
        Tiles that a worker computes at once: one is read while another is computed and a third written. 0: one on the CPU; on a
        GPU the worker's share of the cores, at most 16.
    device_memory_frac
        Share of a GPU's free memory that all workers on it together may use.
    scheduler, scheduler_file
        Address of a Dask scheduler (``tcp://`` or ``tls://``), or the JSON file that it wrote; empty: workers on this machine.
    tls_ca, tls_cert, tls_key
        Certificates (PEM) for a ``tls://`` scheduler; empty: Dask's own configuration.
    path_map
        ``FROM=TO`` pairs: paths that start with FROM here start with TO on the workers.
    stage, stage_gb
        Folder on each worker's machine to which slides are copied or fetched while they are processed, and its size limit,
        10^9 bytes.
    keep_staged
        Keep copied and fetched slides; the limit then applies only to slides that are not finished.
    fetch_to
        Folder to which slides at addresses are fetched; set by the run (in ``stage``, else in the run folder).
    fetch_connections, fetch_patience_s
        Number of byte ranges of a slide that are fetched in parallel, and maximum time without receiving a byte, s.
    gdc_token_file
        File with the token for controlled files of the GDC, on every host; the token itself is never recorded.
    task_s
        Tiles are submitted in batches that take about this long, so that short tiles do not wait for the scheduler, s.
    tile_timeout_s
        Maximum seconds for one tile (or for opening or finishing one slide): a slower worker is killed and replaced, and
        the tile tried again; 0: no limit.
    any_processor
        Allow processors whose maps differ in their last bits (bf16; fp32 without AVX2) in one run. They are
        recorded in ``run.json``.
    dask_cuda
        Start GPU workers by the package dask-cuda, which binds each to the cores near its GPU; it must be installed.
    metrics_file
        File to which counters are written in the Prometheus text format, for its node exporter.
    """

    device: Literal["auto", "cpu", "cuda"] = _free("auto")
    gpus: str = _free("")
    workers_per_gpu: int = _free(0)
    dask_cuda: bool = _free(False)
    threads_per_worker: int = _free(0)
    device_memory_frac: float = _free(0.9)
    workers: int = _free(0)
    scheduler: str = _free("")
    scheduler_file: str = _free("")
    tls_ca: str = _free("")
    tls_cert: str = _free("")
    tls_key: str = _free("")
    path_map: tuple[str, ...] = _free(())
    stage: str = _free("")
    stage_gb: float = _free(100.0)
    keep_staged: bool = _free(False)
    fetch_to: str = _free("")
    fetch_connections: int = _free(4)
    fetch_patience_s: float = _free(600.0)
    gdc_token_file: str = _free("")
    in_flight_per_worker: int = _free(2)
    task_s: float = _free(1.0)
    retries: int = _free(2)
    tile_timeout_s: float = _free(1800.0)
    any_processor: bool = _free(False)
    metrics_file: str = _free("")

    @property
    def remote(self) -> bool:
        """Whether the workers are those of an existing scheduler."""
        return bool(self.scheduler or self.scheduler_file)

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for impossible values."""
        _require(self.workers >= 0, "schedule.workers", "0 (one per core) or more", self.workers)
        numbers = [part.strip() for part in self.gpus.split(",")] if self.gpus else []
        good = all(n.isdecimal() for n in numbers) and len(set(numbers)) == len(numbers)
        _require(good, "schedule.gpus", "different GPU numbers with commas, such as 0,1", self.gpus)
        _require(0 <= self.workers_per_gpu <= 16, "schedule.workers_per_gpu", "0 (chosen) to 16", self.workers_per_gpu)
        _require(0 <= self.threads_per_worker <= 64, "schedule.threads_per_worker", "0 (chosen) to 64", self.threads_per_worker)
        _require(0 < self.device_memory_frac <= 1, "schedule.device_memory_frac", "0 to 1", self.device_memory_frac)
        _require(self.in_flight_per_worker >= 1, "schedule.in_flight_per_worker", "1 or more", self.in_flight_per_worker)
        _require(self.task_s >= 0, "schedule.task_s", "0 s (one tile a task) or more", self.task_s)
        _require(self.stage_gb > 0, "schedule.stage_gb", "more than 0", self.stage_gb)
        _require(1 <= self.fetch_connections <= 64, "schedule.fetch_connections", "1 to 64", self.fetch_connections)
        _require(self.fetch_patience_s > 0, "schedule.fetch_patience_s", "more than 0 s", self.fetch_patience_s)
        for pair in self.path_map:
            ok = all(side.startswith("/") for side in pair.partition("=")[::2])
            _require(ok, "schedule.path_map", "FROM=TO, both absolute, e.g. /data=/mnt/nfs/data", pair)
        both = not (self.scheduler and self.scheduler_file)
        _require(both, "schedule.scheduler_file", "alone (not with schedule.scheduler)", self.scheduler_file)
        tls = (self.tls_ca, self.tls_cert, self.tls_key)
        lacking = [n for n, file in zip(("tls_ca", "tls_cert", "tls_key"), tls, strict=True) if not file]
        _require(len(lacking) in (0, 3), "schedule.tls_*", f"tls_ca, tls_cert and tls_key together ({lacking} missing)", tls)
        _require(self.retries >= 0, "schedule.retries", "0 or more", self.retries)
        _require(self.tile_timeout_s >= 0, "schedule.tile_timeout_s", "0 s (no limit) or more", self.tile_timeout_s)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All stages' options."""

    read: ReadConfig = field(default_factory=ReadConfig)
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    separate: SeparateConfig = field(default_factory=SeparateConfig)
    vectorize: VectorizeConfig = field(default_factory=VectorizeConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return all options as nested plain values."""
        return dataclasses.asdict(self)

    def result_fields(self) -> dict[str, Any]:
        """Return ``{"stage.field": value}`` for every option that changes results."""
        out: dict[str, Any] = {}
        for stage in dataclasses.fields(self):
            value = getattr(self, stage.name)
            for f in dataclasses.fields(value):
                if f.metadata.get("results", True):
                    out[f"{stage.name}.{f.name}"] = getattr(value, f.name)
        return out

    def digest(self, **facts: Any) -> str:
        """Return a hash (16 hex digits) of everything that changes results: options and ``facts`` (weights sha256, ...)."""
        text = json.dumps({**self.result_fields(), **facts}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> RunConfig:
        """Return the config from nested dicts. Raises ``ConfigError`` for unknown stages or options, with the known ones."""
        stages = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        built: dict[str, Any] = {}
        for stage, options in tree.items():
            if stage not in stages:
                raise ConfigError(f"config: no stage [{stage}]. Expected one of {sorted(stages)}.")
            if not isinstance(options, dict):
                raise ConfigError(f"config: [{stage}] must be a table of options, got {type(options).__name__}.")
            kind: Any = stages[stage]
            known = {f.name for f in dataclasses.fields(kind)}
            unknown = sorted(set(options) - known)
            if unknown:
                raise ConfigError(f"config: [{stage}] has no option {unknown[0]!r}. Expected one of {sorted(known)}.")
            hints = typing.get_type_hints(kind)
            for name, value in options.items():
                if (stage, name, value) == ("read", "reader", "cucim-gpu"):
                    raise ConfigError("Option read.reader: 'cucim-gpu' was removed, as it decoded on the CPU too. Use 'auto'.")
                _require(fits(value, hints[name]), f"{stage}.{name}", type_words(hints[name]).removesuffix(" or null"), value)
            built[stage] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        return cls(**built)

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Read a TOML file. Raises ``ConfigError`` for invalid TOML (with the line) and for unknown options."""
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
            raise ConfigError(f"config file {path}: {err}") from err
        return cls.from_dict(tree)


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"Expected option {name} to be {expected}, got {got!r}.")
