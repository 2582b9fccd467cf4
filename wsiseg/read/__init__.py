"""Read slides. Input: a slide file or image. Output: its metadata, tissue, tiles, and uint8 (h, w, 3) windows in working px.

``open_slide`` picks the reader. ``fit_tissue`` (or the user's mask) and ``tile_grid`` plan the slide once; ``read_working``
reads any window of it. Outside the slide a window is white, and a px has the same value in every window that shows it.
"""

from wsiseg.read.array import ArraySlide
from wsiseg.read.files import slide_id_of
from wsiseg.read.grid import tile_grid
from wsiseg.read.look import slide_look
from wsiseg.read.mask_files import tissue_from_file
from wsiseg.read.mask_window import tissue_cells, tissue_frac, tissue_px_in, tissue_window, unscanned_window
from wsiseg.read.outside import OutsideWindow, outside_windows
from wsiseg.read.sample import stain_sample
from wsiseg.read.slide import Slide, fingerprint, open_slide
from wsiseg.read.tissue import UNSCANNED_MAX, SlideSurvey, ThumbnailView, TissueMask, fit_tissue, grown, survey_slide
from wsiseg.read.view import TissueView, tissue_view, unscanned_view
from wsiseg.read.working import read_working, scale_for, working_size

__all__ = [
    "ArraySlide",
    "OutsideWindow",
    "Slide",
    "SlideSurvey",
    "ThumbnailView",
    "TissueMask",
    "TissueView",
    "UNSCANNED_MAX",
    "fingerprint",
    "fit_tissue",
    "grown",
    "open_slide",
    "outside_windows",
    "read_working",
    "scale_for",
    "slide_id_of",
    "slide_look",
    "stain_sample",
    "survey_slide",
    "tile_grid",
    "tissue_cells",
    "tissue_frac",
    "tissue_from_file",
    "tissue_px_in",
    "tissue_view",
    "tissue_window",
    "unscanned_view",
    "unscanned_window",
    "working_size",
]
