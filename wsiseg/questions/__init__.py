"""Spatial analysis of the nuclei of a run: regions, assignment of points, neighbors, and cells grown from nuclei.

Input: polygon tables, drawn regions (``wsiseg.tables.annotations``), points of other instruments (``points``) and their
transformation to the slide (``transforms``). Output: tables (``wsiseg.schema.REGIONS``, ``BORDERS``, ``EDGES``, ``NEIGHBORS``,
``CELLS``, ``ASSIGNED``) and AnnData.
"""

from wsiseg.questions.annotated import Region, place_regions
from wsiseg.questions.assign import Assigned, AssignOptions, assign_points_to_nuclei
from wsiseg.questions.borders import write_borders
from wsiseg.questions.cells import CellOptions, SlideCells, cells_of_slide, grow_cells
from wsiseg.questions.coverage import tissue_area
from wsiseg.questions.neighbors import NeighborOptions, SlideNeighbors, find_neighbors, neighbors_of_slide
from wsiseg.questions.output import write_regions
from wsiseg.questions.pairing import Pairing, pair_annotations, tables_of
from wsiseg.questions.points import PointTable, open_points
from wsiseg.questions.regions import RegionOptions, RegionRows, region_rows, run_regions

__all__ = [
    "AssignOptions",
    "Assigned",
    "CellOptions",
    "NeighborOptions",
    "Pairing",
    "PointTable",
    "Region",
    "RegionOptions",
    "RegionRows",
    "SlideCells",
    "SlideNeighbors",
    "assign_points_to_nuclei",
    "cells_of_slide",
    "find_neighbors",
    "grow_cells",
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
