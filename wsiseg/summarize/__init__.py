"""A slide's table and additive tile sums -> one row of statistics; the rows of a run -> tables with units, and a CSV twin."""

from wsiseg.summarize.cohort import read_slides_table, write_errors_table, write_slides_table
from wsiseg.summarize.slide import failed_row, summarize_slide

__all__ = ["failed_row", "read_slides_table", "summarize_slide", "write_errors_table", "write_slides_table"]
