"""Statistics: one row per slide from its table and tile sums; the rows of a run as a table with units, and as CSV.

It also measures the features of nuclei that are computed on request from rings, pixels and centroids.
"""

from wsiseg.summarize.cohort import read_errors_table, read_slides_table, write_errors_table, write_slides_table
from wsiseg.summarize.features import RUIFROK_JOHNSTON, neighbors, od_features, od_tables, solidity, sum_od, sum_ring_od
from wsiseg.summarize.foreign import TRAITS, Foreign, Trait, foreign_look, look_reference
from wsiseg.summarize.outside import OutsideEstimate, estimate_outside
from wsiseg.summarize.slide import SlideWork, failed_row, nuclei_statistics, summarize_slide

__all__ = [
    "Foreign",
    "OutsideEstimate",
    "RUIFROK_JOHNSTON",
    "SlideWork",
    "TRAITS",
    "Trait",
    "estimate_outside",
    "failed_row",
    "foreign_look",
    "look_reference",
    "neighbors",
    "nuclei_statistics",
    "od_features",
    "od_tables",
    "read_errors_table",
    "read_slides_table",
    "solidity",
    "sum_od",
    "sum_ring_od",
    "summarize_slide",
    "write_errors_table",
    "write_slides_table",
]
