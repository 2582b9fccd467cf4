"""Two segmentations of whole slides -> how far they agree: per slide, pooled, and where on the slide they do not.

Comes in: two runs (or tables), slides paired by id. Goes out: a folder with rows, cells, pictures and a page.
"""

from __future__ import annotations

from wsiseg.evaluation.compare.run import Comparison, SlideComparison, compare_segmentations

__all__ = ["Comparison", "SlideComparison", "compare_segmentations"]
