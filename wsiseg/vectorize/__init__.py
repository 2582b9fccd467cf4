"""Trace the ``Instances`` of one window: a ``PolygonBatch`` of the nuclei that the tile owns, and the tile's additive sums.

All but the last step is integer arithmetic with a unique result; neighbours are 4-connected, (y, x) is a pixel, coordinates are
(x, y) of pixel corners.

* **Ownership.** A tile writes the nuclei whose marker pixel is in its core. Cores partition the slide, so each nucleus is
  written once, whole, by one tile. ``nucleus_id`` = marker's working y * 2^31 + its working x.
* **Ring.** The outer boundary of the label along pixel edges. It starts at the top-left corner of the label's first pixel in
  raster order, heading east, with the label on the right. At each corner: if the pixel ahead on the left has the label, turn
  left; else if the one ahead on the right has it, go straight on; else turn right. Where two pixels of the label touch only at
  a corner, the ring passes between the two other pixels and never twice through the corner, so every ring is a valid, simple
  polygon. Vertices are the turns; the first is repeated at the end. With y pointing down this is clockwise on
  screen; the shoelace sum over (x, y) as stored is positive, which is what GeoJSON, WKB and shapely call counter-clockwise.
  Its area is the label's pixel count with holes filled (4-connected background that cannot reach the outside).
* **Sums** over the filled pixels, exactly, by Green's theorem on the ring: 1, i, j, ii, ij, jj with (i, j) = (x, y) relative to
  the first pixel; also the ring's unit edges and its corners; and the material sum over the label's own pixels.
* **Columns** are computed from those sums by one NumPy function (``columns_of``), on every device. Axes are those of
  the ellipse with the same second moments of pixel centers (``4 sqrt(eigenvalue)``, as scikit-image's regionprops). The
  perimeter is Crofton's with 4 directions, ``pi / 8 ((1 + sqrt 2) edges - corners / sqrt 2)``: unbiased for outlines without a
  preferred direction, between -5.2 % (axis-parallel) and +2.6 % for a straight edge (Ohser and Muecklich, Statistical Analysis
  of Microstructures in Materials Science, 2000).

``rasterize`` is the inverse, from rings to a label image. Where polygons overlap (a nucleus in the filled hole of another) the
smallest one wins; ties: the first.
"""

from __future__ import annotations

from wsiseg.vectorize.columns import columns_of
from wsiseg.vectorize.polygons import area_of_rings, rasterize, tile_stats, vectorize

__all__ = ["area_of_rings", "columns_of", "rasterize", "tile_stats", "vectorize"]
