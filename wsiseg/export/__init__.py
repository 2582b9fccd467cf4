"""Polygon tables <-> what other tools read and write; and questions to the tables.

Comes in: a slide's GeoParquet table (``open_nuclei``), whole, a window or a sample of it.
Goes out: QuPath GeoJSON and the other formats.

Comes in: another tool's file. Goes out: ``Incoming`` chunks, and with ``write_imported_table`` the same table that segmentation
writes, with provenance.
"""
