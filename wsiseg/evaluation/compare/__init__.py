"""Compare two segmentations of whole slides: agreement by slide, pooled, and by position on the slide.

Input: two runs (or tables), whose slides are paired by id. Output: a folder with rows, cells, pictures and an HTML page.
"""

from __future__ import annotations

from wsiseg.evaluation.compare.run import Comparison, SlideComparison, compare_segmentations

__all__ = ["Comparison", "SlideComparison", "compare_segmentations"]
