"""The frozen values that stages pass to each other.

Frames and units
----------------
*Level-0 px* is the slide file's own pixel grid: origin at the top-left **corner** of pixel (0, 0), x right, y down; pixel (i,
j) covers [i, i + 1) x [j, j + 1). *Working px* (``wpx``) is the same plane sampled at the model's resolution: ``working =
level0 * scale``. Tiles and windows are in working px, so that they partition the slide exactly; tables are in level-0 px.
Coordinates are (x, y); arrays are (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Box",
    "FailureKind",
    "Instances",
    "PolygonBatch",
    "Processor",
    "SlideMeta",
    "Stain",
    "Tile",
    "TileOutcome",
    "TileStats",
]

Array = Any  # numpy.ndarray or cupy.ndarray: same kind in, same kind out

MppSource = Literal["openslide", "ome", "imagej", "aperio", "vips", "leica", "zarr", "image", "tiff", "objective", "user"]
FailureKind = Literal["", "fact", "library", "disk"]
"""Of a failure: a fact of the slide, which every host would find; a library that this worker lacks; a full disk of this host;
anything else."""

TileStatus = Literal["done", "empty", "failed"]
StainMethod = Literal["none", "reinhard", "macenko"]


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Half-open rectangle [x, x + w) x [y, y + h); it may extend beyond the slide, where pixels are white."""

    x: int
    y: int
    w: int
    h: int

    @property
    def x1(self) -> int:
        """Right end (exclusive)."""
        return self.x + self.w

    @property
    def y1(self) -> int:
        """Bottom end (exclusive)."""
        return self.y + self.h

    def padded(self, margin: int) -> Box:
        """Return the box grown by ``margin`` on all four sides."""
        return Box(self.x - margin, self.y - margin, self.w + 2 * margin, self.h + 2 * margin)


@dataclass(frozen=True, slots=True)
class SlideMeta:
    """Metadata of one slide.

    ``slide_id`` is the file stem (a TCGA barcode is not changed). ``bounds_x/y`` is the offset of the scanned area in level-0
    px (0 if the format has none); coordinates in tables are relative to the slide, not to this area. ``reader`` is the library
    that decodes the pixels, and ``reader_note`` the reason why a faster one was not used (empty: it was). ``layout`` describes
    how the file stores pixels and how they were converted, ``mpp_note`` contradictions between its statements of microns per
    pixel. ``file`` is the slide's file name if ``path`` is an address that does not end with it, else empty.
    """

    slide_id: str
    path: str
    width_px: int
    height_px: int
    mpp: float
    mpp_source: MppSource
    bounds_x: int = 0
    bounds_y: int = 0
    bounds_w: int = 0
    bounds_h: int = 0
    level_downsamples: tuple[float, ...] = (1.0,)
    vendor: str = ""
    cohort: str = ""
    objective_power: float | None = None
    reader: str = ""
    reader_note: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    layout: str = ""
    mpp_note: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Processor:
    """Identifies the maps that a processor computes with a network (see ``wsiseg.predict.arithmetic_of``).

    ``digest`` is the digest of the network's output for a fixed picture; ``device`` is ``cpu`` or ``cuda``; ``processor`` and
    ``host`` are informative.
    """

    digest: str
    processor: str
    host: str
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of work, in working px. The cores of a slide's tiles partition the slide exactly.

    ``tile_id`` is row-major in the full grid, so it does not depend on which tiles have tissue. ``read`` is the core plus the
    separation halo; the predict stage chooses the larger windows that the network needs. ``scale`` is working px per level-0 px
    (1.0: pixels are not resampled). An ``outside`` tile is a window sampled outside the tissue mask, which is segmented as if
    all of it were tissue but is not in the slide's table; its id follows those of the grid.
    """

    slide_id: str
    tile_id: int
    core: Box
    read: Box
    scale: float
    tissue_frac: float
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Stain:
    """A fitted stain normalization: a constant of the slide, never of a tile.

    ``params`` are the fitted numbers of the slide in the order that ``wsiseg.normalize`` documents. A reference
    image (the ``aim`` of ``fit_stain``) has the same numbers; if it has none, the method's own reference is used.
    """

    method: StainMethod = "none"
    params: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """Separated nuclei of one window.

    Attributes
    ----------
    labels : int32 (H, W)
        0 background, 1..N nuclei; label k is a 4-connected region that contains its marker.
    anchors : int32 (N, 2)
        (x, y) of the marker pixel of label k at row k - 1, in window px. Raster order.
    """

    labels: Array
    anchors: Array


@dataclass(frozen=True, slots=True, eq=False)
class PolygonBatch:
    """Nuclei of one tile as ragged arrays (the only in-memory form of polygons).

    Attributes
    ----------
    xy : int32 (V, 2)
        Ring vertices (x, y) in the slide's **working px** lattice (pixel corners), closed (last == first), counter-clockwise
        in the sense of a positive shoelace sum over (x, y) as written, collinear points merged.
    ring_offsets : int64 (N + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``. Each nucleus has one exterior ring; holes are filled.
    columns : dict of str to array (N,)
        Per-nucleus numbers, named as in ``wsiseg.schema.BATCH_COLUMNS``.
    """

    xy: Array
    ring_offsets: Array
    columns: dict[str, Array]

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.ring_offsets) - 1


@dataclass(frozen=True, slots=True)
class TileStats:
    """Additive statistics of one tile: those of a slide are the field-wise sum over its tiles.

    Pixel sums are over the tile's core, in working px; those named ``tissue`` only over tissue.
    """

    core_px: int = 0
    tissue_px: int = 0
    material_px: int = 0
    sum_center_u8: int = 0
    sum_material_u8: int = 0

    def __add__(self, other: TileStats) -> TileStats:
        """Return the field-wise sum."""
        return TileStats(
            self.core_px + other.core_px,
            self.tissue_px + other.tissue_px,
            self.material_px + other.material_px,
            self.sum_center_u8 + other.sum_center_u8,
            self.sum_material_u8 + other.sum_material_u8,
        )


@dataclass(frozen=True, slots=True)
class TileOutcome:
    """The result of one tile that is sent back through Dask: about 200 bytes, never pixels or polygons.

    ``host`` and ``worker`` are those of the last try of a failed tile; the client sets them. ``kind`` is that of ``error``.
    """

    slide_id: str
    tile_id: int
    status: TileStatus
    n_nuclei: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""
    attempts: int = 1
    host: str = ""
    worker: str = ""
    kind: FailureKind = ""
