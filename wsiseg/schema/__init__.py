"""Column names, dtypes and units of every table, in one place.

``NUCLEI`` is the per-slide polygon table (GeoParquet), ``SLIDES`` the statistics with one row per slide, ``ERRORS`` the
failures. ``DERIVED`` are features computed from stored columns on reading, ``FEATURES`` those that need pixels or neighbors
and are written as a second table on request.
Each column is (name, Arrow type as text, unit, meaning); ``wsiseg.tables.arrow_schema`` turns a table into a ``pyarrow.Schema``
with ``unit`` and ``description`` in the field metadata.
"""

from __future__ import annotations

from wsiseg.schema.column import Column
from wsiseg.schema.quality import (
    DECISIONS,
    GRADED,
    OUTLIERS,
    PATCH_FEATURES,
    PATCHES,
    PREDICTED,
    PREDICTED_SLIDES,
    REVIEW_ORDER,
)

__all__ = [
    "ASSIGNED",
    "BATCH_COLUMNS",
    "BORDERS",
    "BORDER_OF_CLASS",
    "CELLS",
    "COMPARED",
    "COMPARED_CELLS",
    "Column",
    "DECISIONS",
    "DERIVED",
    "EDGES",
    "ERRORS",
    "FEATURES",
    "FINISHED_STATUSES",
    "GOOD_STATUSES",
    "GRADED",
    "IMPORTED",
    "NEIGHBORS",
    "NEIGHBOR_STATISTICS",
    "NUCLEI",
    "OUTLIERS",
    "PARTS",
    "PART_DENSITIES",
    "PATCHES",
    "PATCH_FEATURES",
    "PREDICTED",
    "PREDICTED_SLIDES",
    "REGIONS",
    "REVIEW_ORDER",
    "SCHEMA_VERSION",
    "SLIDES",
    "SLIDE_STATUSES",
    "TRUST",
]

SCHEMA_VERSION = "1"

SLIDE_STATUSES = ("done", "empty", "suspect", "partial", "failed")
"""Values of the column ``status`` of ``SLIDES``. ``partial``: some tiles failed; ``suspect``: no nucleus was found, although
the slide is not blank."""

FINISHED_STATUSES = ("done", "empty", "suspect")
"""Status of slides without a failed tile: segmenting them again with the same settings gives the same result."""

GOOD_STATUSES = ("done", "empty")
"""Status of slides that need no attention: a run of these alone ends with exit code 0."""


NUCLEI: tuple[Column, ...] = (
    Column("nucleus_id", "int64", "", "seed_wy * 2**31 + seed_wx: stable in the slide whatever the tiling"),
    Column("geometry", "wkb", "level-0 px", "exterior ring on pixel edges, closed, counter-clockwise, holes filled"),
    Column("bbox", "bbox", "level-0 px", "xmin, ymin, xmax, ymax of the geometry"),
    Column("cx", "float32", "level-0 px", "centroid x of the hole-filled polygon, to 1/16 px"),
    Column("cy", "float32", "level-0 px", "centroid y of the hole-filled polygon, to 1/16 px"),
    Column("area_px", "float32", "level-0 px^2", "area of the polygon in level-0 pixels"),
    Column("area_um2", "float32", "um^2", "area of the polygon"),
    Column("perimeter_um", "float32", "um", "boundary length, Crofton-corrected from crack length (see vectorize), to 1/32 um"),
    Column("major_um", "float32", "um", "major axis of the ellipse with the same second moments, to 1/32 um"),
    Column("minor_um", "float32", "um", "minor axis of the ellipse with the same second moments, to 1/32 um"),
    Column("orientation_rad", "float32", "rad", "angle of the major axis from +x towards +y, (-pi/2, pi/2], to 1/256 rad"),
    Column("center_prob", "uint8", "1/255", "center map at the marker"),
    Column("material_prob", "uint8", "1/255", "mean material map over the nucleus"),
    Column("tile_id", "int32", "", "tile whose core holds the marker"),
)
"""Per-slide polygon table."""

IMPORTED: tuple[Column, ...] = (
    Column("class_name", "string", "", "class that the source gives the nucleus"),
    Column("import_flags", "uint8", "", "bits of wsiseg.export.Flag: invalid ring, giant, defective edge tile, ..."),
)
"""Columns that an imported table has in addition to ``NUCLEI``."""

DERIVED: tuple[Column, ...] = (
    Column("axis_major_length_um", "float32", "um", "major_um under scikit-image's name"),
    Column("axis_minor_length_um", "float32", "um", "minor_um under scikit-image's name"),
    Column("orientation", "float32", "rad", "angle of the major axis as scikit-image gives it: from the y axis, [-pi/2, pi/2)"),
    Column("eccentricity", "float32", "1", "of that ellipse: sqrt(1 - (minor / major)^2), 0 for a circle"),
    Column("equivalent_diameter_area_um", "float32", "um", "diameter of the circle with the same area"),
    Column("circularity", "float32", "1", "4 pi area / perimeter^2; 1 for a circle, a little more for some small nuclei"),
)
"""Features computed from columns of ``NUCLEI`` on reading (``wsiseg.tables.derived``); they are not stored."""

FEATURES: tuple[Column, ...] = (
    Column("nucleus_id", "int64", "", "as in the polygon table, row by row"),
    Column("solidity", "float32", "1", "area / area of the convex hull of the polygon, to 1/1024"),
    Column("hematoxylin_od_mean", "float32", "OD", "mean optical density (base 10) of hematoxylin over the nucleus's pixels"),
    Column("hematoxylin_od_std", "float32", "OD", "its standard deviation (population)"),
    Column("eosin_od_mean", "float32", "OD", "mean optical density (base 10) of eosin over the nucleus's pixels"),
    Column("eosin_od_std", "float32", "OD", "its standard deviation (population)"),
    Column("nearest_um", "float32", "um", "distance to the nearest other nucleus, centroid to centroid, to 1/32 um"),
    Column(
        "local_density_per_mm2", "float32", "1/mm^2", "other nuclei with their centroid within 50 um, per area of that disc"
    ),
)
"""Features that need pixels or neighbors: ``RUN/features/<slide_id>.parquet``, its rows in the polygon table's order."""

BATCH_COLUMNS: tuple[Column, ...] = (
    Column("nucleus_id", "int64", "", "seed_wy * 2**31 + seed_wx"),
    Column("area_wpx", "int32", "working px^2", "hole-filled pixel count == shoelace area of the ring"),
    Column("cx_wpx", "float64", "working px", "centroid x of the filled region (pixel centers at +0.5)"),
    Column("cy_wpx", "float64", "working px", "centroid y"),
    Column("perimeter_wpx", "float32", "working px", "boundary length estimate"),
    Column("major_wpx", "float32", "working px", "major axis length"),
    Column("minor_wpx", "float32", "working px", "minor axis length"),
    Column("orientation_rad", "float32", "rad", "angle of the major axis from +x towards +y"),
    Column("center_prob", "uint8", "1/255", "center map at the marker"),
    Column("material_prob", "uint8", "1/255", "mean material map over the label's pixels, rounded half up"),
)
"""Columns of ``wsiseg.types.PolygonBatch.columns``, which ``vectorize`` computes and ``write`` stores."""

PARTS: tuple[Column, ...] = (
    *BATCH_COLUMNS,
    Column("anchor_x", "int32", "working px", "x of the ring's first vertex"),
    Column("anchor_y", "int32", "working px", "y of the ring's first vertex"),
    Column("steps", "binary", "", "steps of the ring from vertex to vertex, as ``wsiseg.write.rings`` codes them"),
)
"""One tile's nuclei, ``RUN/parts/<slide_id>/<tile_id>.parquet``, until the slide's table is written from these files."""

PART_DENSITIES: tuple[Column, ...] = (
    Column("od_px", "int64", "working px", "pixels of the nucleus inside the slide"),
    Column("hematoxylin_sum", "int64", "1/4096 OD", "sum of the optical density of hematoxylin over them"),
    Column("hematoxylin_squares", "int64", "1/4096^2 OD^2", "sum of its squares"),
    Column("eosin_sum", "int64", "1/4096 OD", "sum of the optical density of eosin over them"),
    Column("eosin_squares", "int64", "1/4096^2 OD^2", "sum of its squares"),
)
"""Columns that a tile has besides under ``segment --features``: ``FEATURES`` are made of them."""

TRUST: tuple[Column, ...] = (
    Column(
        "tissue_mask", "string", "", "found (by wsiseg), given (a file) or all (no mask: the whole slide); empty: not recorded"
    ),
    Column("outside_windows", "int32", "", "sampled windows of 64 um outside the mask that were segmented"),
    Column(
        "outside_nuclei", "float64", "", "nuclei outside the mask, estimated from the sample (docs/results.md); pen marks apart"
    ),
    Column("outside_nuclei_low", "float64", "", "lower end of its 95 % interval"),
    Column("outside_nuclei_high", "float64", "", "upper end of its 95 % interval"),
    Column("outside_frac", "float64", "1", "outside_nuclei / (n_nuclei + outside_nuclei)"),
    Column("ink_frac", "float64", "1", "pen marks / (tissue and pen marks), by area"),
    Column("fold_frac", "float64", "1", "share of tissue far darker than the rest, in both stains: folds, thick places"),
    Column("stain_residual", "float64", "1", "share of optical density that hematoxylin and eosin do not explain"),
    Column("brown_frac", "float64", "1", "share of stained tissue that is brown (DAB, pigment)"),
    Column("od_red_frac", "float64", "1", "red's share of the optical density of tissue, median"),
    Column("od_blue_frac", "float64", "1", "blue's share of the optical density of tissue, median"),
    Column("od_green_high", "float64", "1", "green's share of it, 90th percentile: low where nothing is pink"),
    Column("sharpness", "float64", "1", "fine detail / all detail of tissue at 0.5 um/px, median over patches"),
    Column("sharpness_low", "float64", "1", "the same, 10th percentile over patches"),
    Column("unsharp_frac", "float64", "1", "share of windows of 16 um far less sharp than the others: strips out of focus"),
    Column("jpeg_blocking", "float64", "1", "steps across a grid of 8 px / steps beside it, less 1; level-0 px"),
    Column("nuclei_per_colored_mm2", "float64", "1/mm^2", "nuclei per area of colored tissue, the mask's margin left out"),
    Column("foreign_score", "float64", "1", "how unlike the training images the slide is; QC flags it above 1"),
    Column("foreign_reasons", "string", "", "why, in words, the strongest first, separated by semicolons"),
    Column("seconds_outside", "float64", "s", "time for the sample outside the mask"),
)
"""Columns of ``SLIDES`` about the tissue mask and about how unusual a slide looks."""

SLIDES: tuple[Column, ...] = (
    Column("slide_id", "string", "", "file stem, TCGA barcode verbatim"),
    Column("cohort", "string", "", "cancer type or any group given in the manifest"),
    Column("status", "string", "", "done, empty (blank glass), suspect (no nucleus, not blank), partial or failed"),
    Column("path", "string", "", "slide file as given"),
    Column("n_nuclei", "int64", "", "nuclei in the table"),
    Column("nuclei_per_mm2", "float64", "1/mm^2", "nuclei per tissue area"),
    Column("tissue_mm2", "float64", "mm^2", "tissue area that was segmented"),
    Column("area_mean_um2", "float64", "um^2", "mean nuclear area"),
    Column("area_std_um2", "float64", "um^2", "standard deviation of nuclear area (population)"),
    Column("area_p05_um2", "float64", "um^2", "5th percentile of nuclear area"),
    Column("area_p25_um2", "float64", "um^2", "25th percentile of nuclear area"),
    Column("area_p50_um2", "float64", "um^2", "median nuclear area"),
    Column("area_p75_um2", "float64", "um^2", "75th percentile of nuclear area"),
    Column("area_p95_um2", "float64", "um^2", "95th percentile of nuclear area"),
    Column("material_frac", "float64", "1", "share of tissue pixels that are nuclear material"),
    Column("center_prob_mean", "float64", "1", "mean center probability over nuclei"),
    Column("material_prob_mean", "float64", "1", "mean material probability over nuclei"),
    Column("tiles_done", "int32", "", "tiles segmented"),
    Column("tiles_empty", "int32", "", "tiles without tissue"),
    Column("tiles_failed", "int32", "", "tiles that failed (see errors.parquet)"),
    Column("width_px", "int32", "level-0 px", "slide width"),
    Column("height_px", "int32", "level-0 px", "slide height"),
    Column("mpp", "float64", "um/px", "microns per level-0 pixel"),
    Column(
        "mpp_source",
        "string",
        "",
        "openslide (vendor), ome, imagej, aperio, vips, leica, zarr, image, tiff, objective (10 / power) or user",
    ),
    Column("scale", "float64", "1", "working px per level-0 px"),
    Column("bounds_x", "int32", "level-0 px", "left of the scanned area"),
    Column("bounds_y", "int32", "level-0 px", "top of the scanned area"),
    Column("vendor", "string", "", "scanner vendor as OpenSlide names it"),
    Column("reader", "string", "", "what decoded the pixels"),
    Column("reader_note", "string", "", "why a faster reader was not used"),
    Column("stain", "string", "", "stain normalization and its fitted numbers"),
    Column("precision", "string", "", "arithmetic of the network: fp32, bf16 or int8 (empty: not recorded, or imported)"),
    Column("precision_choice", "string", "", "automatic (by the processor) or chosen (by the user)"),
    Column("seconds_read", "float64", "s", "time reading, summed over tiles"),
    Column("seconds_normalize", "float64", "s", "time normalizing"),
    Column("seconds_predict", "float64", "s", "time in the network"),
    Column("seconds_separate", "float64", "s", "time separating"),
    Column("seconds_vectorize", "float64", "s", "time vectorizing"),
    Column("seconds_write", "float64", "s", "time writing tiles and the table"),
    Column("seconds_features", "float64", "s", "time measuring features in the pass (null: --features was not asked for)"),
    *TRUST,
    Column("device_note", "string", "", "most GPU memory held, and what was done otherwise for want of it (empty: on the CPU)"),
    Column("table", "string", "", "polygon table, relative to the run folder"),
    Column("error", "string", "", "why the slide failed or is suspect (empty: neither)"),
)
"""One row per slide."""

REGIONS: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("kind", "string", "", "region (as drawn), or class (all regions of a class together: nothing counts twice)"),
    Column("region", "int32", "", "place of the region in the annotation file, from 0; -1 for a class"),
    Column("class_name", "string", "", "class that the file gives (empty: none)"),
    Column("name", "string", "", "name that the file gives (empty: none)"),
    Column("n_regions", "int32", "", "regions of the class; 1 for a region"),
    Column("area_mm2", "float64", "mm^2", "area, holes left out, inside the slide"),
    Column("outside_frac", "float64", "1", "share of the drawn area outside the slide, which does not count (class: null)"),
    Column("tissue_mm2", "float64", "mm^2", "tissue in it (null: the slide has no tissue mask)"),
    Column("tissue_frac", "float64", "1", "tissue_mm2 / area_mm2"),
    Column("n_nuclei", "int64", "", "nuclei that belong to it; those of overlapping regions belong to each"),
    Column("nuclei_per_region_mm2", "float64", "1/mm^2", "nuclei per area of the region"),
    Column("nuclei_per_tissue_mm2", "float64", "1/mm^2", "nuclei per tissue area, as nuclei_per_mm2 of a slide"),
    Column("nuclear_area_frac", "float64", "1", "summed area of its nuclei / area_mm2"),
    Column("area_mean_um2", "float64", "um^2", "mean nuclear area"),
    Column("area_std_um2", "float64", "um^2", "standard deviation of nuclear area (population)"),
    Column("area_p05_um2", "float64", "um^2", "5th percentile of nuclear area"),
    Column("area_p25_um2", "float64", "um^2", "25th percentile of nuclear area"),
    Column("area_p50_um2", "float64", "um^2", "median nuclear area"),
    Column("area_p75_um2", "float64", "um^2", "75th percentile of nuclear area"),
    Column("area_p95_um2", "float64", "um^2", "95th percentile of nuclear area"),
    Column("center_prob_mean", "float64", "1", "mean center probability over nuclei"),
    Column("material_prob_mean", "float64", "1", "mean material probability over nuclei"),
    Column("belongs", "string", "", "by what a nucleus belongs: marker, centroid (imported nuclei have no marker) or area"),
    Column("area_frac", "float64", "1", "by area: the least share of a nucleus's area that must lie in the region (else null)"),
    Column("annotation", "string", "", "annotation file"),
    Column("geometry", "wkb", "level-0 px", "the region, cut at the slide's border"),
)
"""Annotated regions, of ``wsiseg regions``: one row per region, and one per class of each slide."""

BORDERS: tuple[Column, ...] = (
    Column("nucleus_id", "int64", "", "as in the polygon table, row by row"),
    Column("region", "int32", "", "first region of the file that holds the nucleus's marker, -1: none"),
    Column(
        "border_um", "float32", "um", "distance of the marker to the nearest border of the regions together; inside negative"
    ),
)
"""Distances to regions, of ``wsiseg regions --distances``; ``BORDER_OF_CLASS`` for each class follows."""

BORDER_OF_CLASS = Column("border_um_{class_name}", "float32", "um", "the same, to the regions of the class {words!r}")
"""Distance to the regions of one class."""

CELLS: tuple[Column, ...] = (
    Column("nucleus_id", "int64", "", "as in the polygon table, row by row"),
    Column(
        "geometry", "wkb", "level-0 px", "the nucleus grown by up to expand_um, on pixel edges, holes where others lie in it"
    ),
    Column("bbox", "bbox", "level-0 px", "xmin, ymin, xmax, ymax of the geometry"),
    Column("area_um2", "float32", "um^2", "area of the cell, nucleus included"),
)
"""Cells, the second geometry of a slide's nuclei: ``RUN/cells/<slide_id>.parquet`` of ``wsiseg cells``. A geometry is null if
other nuclei cover the nucleus (imported ones that overlap), or if it is outside the slide."""

EDGES: tuple[Column, ...] = (
    Column("nucleus_a", "int64", "", "nucleus_id of one end: the one that comes first in the polygon table"),
    Column("nucleus_b", "int64", "", "nucleus_id of the other end"),
    Column("distance_um", "float32", "um", "distance of their centroids"),
)
"""Edges between nuclei, of ``wsiseg neighbors``: each once, in the order of the polygon table."""

NEIGHBORS: tuple[Column, ...] = (Column("nucleus_id", "int64", "", "as in the polygon table, row by row"),)
"""Statistics of each nucleus's neighbors, of ``wsiseg neighbors``; ``NEIGHBOR_STATISTICS`` of each radius and the triangulation
follow."""

NEIGHBOR_STATISTICS: tuple[Column, ...] = (
    Column("n_{of}", "int32", "", "other nuclei {words}"),
    Column("edge_mean_um_delaunay", "float32", "um", "mean length of its Delaunay edges; null: none"),
    Column("{column}_mean_{of}", "float32", "{unit}", "mean {column} of these; null: none"),
)
"""Columns of each radius (``within_<r>um``) and of the triangulation (``delaunay``); only the latter has a mean edge length."""

ASSIGNED: tuple[Column, ...] = (
    Column(
        "nucleus_id", "int64", "", "nucleus that holds the point, or on whose border it lies, else the nearest (null: none)"
    ),
    Column("distance_um", "float32", "um", "0 in a nucleus, else the distance to its outline (null: no nucleus)"),
)
"""Points of ``wsiseg assign``, its rows in the order of the file; the columns that are kept follow."""

ERRORS: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("tile_id", "int32", "", "tile, -1 for the whole slide"),
    Column("x_px", "int64", "level-0 px", "left of the tile's core"),
    Column("y_px", "int64", "level-0 px", "top of the tile's core"),
    Column("error", "string", "", "reason in one line"),
    Column("attempts", "int32", "", "times it was tried"),
    Column("host", "string", "", "machine of the last try (empty: not known)"),
    Column("worker", "string", "", "worker of the last try: its name in the cluster, else its address (empty: not known)"),
)
"""What failed."""

COMPARED: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide of both"),
    Column("status", "string", "", "done, empty (no nucleus on either side), refused (the tables do not fit) or failed"),
    Column("n_a", "int64", "", "nuclei of A, the segmentation that is scored"),
    Column("n_b", "int64", "", "nuclei of B, the reference"),
    Column("matched", "int64", "", "pairs of IoU > 0.5"),
    Column("count_ratio", "float64", "1", "n_a / n_b"),
    Column("area_mean_a_um2", "float64", "um^2", "mean nuclear area of A"),
    Column("area_mean_b_um2", "float64", "um^2", "mean nuclear area of B"),
    Column("area_diff_frac", "float64", "1", "area_mean_a_um2 / area_mean_b_um2 - 1"),
    Column("pq", "float64", "1", "panoptic quality at IoU > 0.5"),
    Column("sq", "float64", "1", "mean IoU of the matches"),
    Column("f1", "float64", "1", "F1 at IoU > 0.5"),
    Column("precision", "float64", "1", "share of A that is matched"),
    Column("recall", "float64", "1", "share of B that is matched"),
    Column("dice", "float64", "1", "Dice of all nuclear pixels, level-0 px"),
    Column("dice2", "float64", "1", "DICE_2 over overlapping pairs"),
    Column("aji", "float64", "1", "aggregated Jaccard index"),
    Column("aji_plus", "float64", "1", "the same over a one-to-one assignment"),
    Column("f1_sweep_mean", "float64", "1", "mean F1 at IoU > 0.5, 0.55 ... 0.95"),
    Column("notes", "string", "", "what does not quite fit, separated by semicolons"),
    Column("error", "string", "", "why the slide was refused or failed (empty: neither)"),
)
"""One row per slide of ``wsiseg compare``."""

COMPARED_CELLS: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("x_px", "int64", "level-0 px", "left of the cell"),
    Column("y_px", "int64", "level-0 px", "top of the cell"),
    Column("side_px", "int32", "level-0 px", "side of the cell"),
    Column("n_a", "int64", "", "nuclei of A with their centroid in the cell; a match counts where that of B is"),
    Column("n_b", "int64", "", "nuclei of B with their centroid in the cell"),
    Column("matched", "int64", "", "pairs of IoU > 0.5"),
    Column("pq", "float64", "1", "panoptic quality of the cell"),
    Column("f1", "float64", "1", "F1 at IoU > 0.5 of the cell"),
)
"""The map of a comparison: cells of a grid that hold a nucleus of either side."""
