"""Questions to the nuclei of a run: how many and which lie in drawn regions, how far from their borders; what surrounds each.

Comes in: polygon tables, and what people drew (``wsiseg.tables.annotations``). Goes out: tables (``wsiseg.schema.REGIONS``,
``BORDERS``, ``EDGES``, ``NEIGHBORS``) and AnnData.
"""

from wsiseg.questions.annotated import Region, place_regions
from wsiseg.questions.borders import write_borders
from wsiseg.questions.coverage import tissue_area
from wsiseg.questions.neighbors import NeighborOptions, SlideNeighbors, find_neighbors, neighbors_of_slide
from wsiseg.questions.output import write_regions
from wsiseg.questions.pairing import Pairing, pair_annotations, tables_of
from wsiseg.questions.regions import RegionOptions, RegionRows, region_rows, run_regions

__all__ = [
    "NeighborOptions",
    "Pairing",
    "Region",
    "RegionOptions",
    "RegionRows",
    "SlideNeighbors",
    "find_neighbors",
    "neighbors_of_slide",
    "pair_annotations",
    "place_regions",
    "region_rows",
    "run_regions",
    "tables_of",
    "tissue_area",
    "write_borders",
    "write_regions",
]
