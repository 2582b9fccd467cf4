"""Polygons of a tile -> a part file; the parts of a slide -> its GeoParquet table.

Every file appears complete or not at all, and the table's bytes depend on the nuclei and the config alone: not on the order in
which tiles were done, not on the clock, not on where the files stand.
"""

from wsiseg.write.features import write_features_table
from wsiseg.write.nuclei import TableSummary, write_nuclei_table
from wsiseg.write.parts import PartHeader, read_part, read_part_header, write_part

__all__ = ["PartHeader", "TableSummary", "read_part", "read_part_header", "write_features_table", "write_nuclei_table",
           "write_part"]  # fmt: skip
