"""Questions to the nuclei of a run: which lie in drawn regions, how far from borders; what surrounds each; which holds a point.

Comes in: polygon tables; what people drew (``wsiseg.tables.annotations``); points of other instruments (``points``), and where
they lie (``transforms``). Goes out: tables (``wsiseg.schema.REGIONS``, ``BORDERS``, ``EDGES``, ``NEIGHBORS``, ``ASSIGNED``) and
AnnData.
"""

from wsiseg.questions.annotated import Region, place_regions
from wsiseg.questions.assign import Assigned, AssignOptions, assign_points_to_nuclei
from wsiseg.questions.borders import write_borders
from wsiseg.questions.coverage import tissue_area
from wsiseg.questions.neighbors import NeighborOptions, SlideNeighbors, find_neighbors, neighbors_of_slide
from wsiseg.questions.output import write_regions
from wsiseg.questions.pairing import Pairing, pair_annotations, tables_of
from wsiseg.questions.points import PointTable, open_points
from wsiseg.questions.regions import RegionOptions, RegionRows, region_rows, run_regions

__all__ = [
    "AssignOptions",
    "Assigned",
    "NeighborOptions",
    "Pairing",
    "PointTable",
    "Region",
    "RegionOptions",
    "RegionRows",
    "SlideNeighbors",
    "assign_points_to_nuclei",
    "find_neighbors",
    "neighbors_of_slide",
    "open_points",
    "pair_annotations",
    "place_regions",
    "region_rows",
    "run_regions",
    "tables_of",
    "tissue_area",
    "write_borders",
    "write_regions",
]
