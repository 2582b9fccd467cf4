"""Write the polygons of a tile to a part file, and the parts of a slide to its GeoParquet table.

Files are written atomically. The table's bytes depend only on the nuclei and the config, not on the order in which tiles were
done, the time, or the folder.
"""

from wsiseg.write.features import write_features_table
from wsiseg.write.maps import MAP_NAMES, MapLevel, SlideMaps, map_cell_px, maps_are_of, read_maps, slide_maps, write_maps
from wsiseg.write.nuclei import TableSummary, write_nuclei_table
from wsiseg.write.parts import DENSITY_COLUMNS, PartHeader, read_densities, read_part, read_part_header, write_part

__all__ = [
    "DENSITY_COLUMNS",
    "MAP_NAMES",
    "MapLevel",
    "PartHeader",
    "SlideMaps",
    "TableSummary",
    "map_cell_px",
    "maps_are_of",
    "read_densities",
    "read_maps",
    "read_part",
    "read_part_header",
    "slide_maps",
    "write_features_table",
    "write_maps",
    "write_nuclei_table",
    "write_part",
]
