"""Convert public nucleus data sets from their formats to one layout: RGB png, label png, INFO.json.

Comes in: the unpacked folder of NucFuseRank, MoNuSeg, CryoNuSeg, NuInsSeg, CoNSeP, CPM, DSB2018, PanNuke, PCNS or TNBC.
Goes out: a folder that ``wsiseg.train`` reads, and a row of facts about it.
"""

from __future__ import annotations

from wsiseg.datasets.formats.convert import FORMATS, SourceFormat, convert, detect_format
from wsiseg.datasets.formats.layout import AnnotatedImage, Conversion, SetStats, dataset_stats, write_dataset
from wsiseg.datasets.formats.outlines import repair_overlap_sums, roi_labels

__all__ = [
    "AnnotatedImage",
    "Conversion",
    "FORMATS",
    "SetStats",
    "SourceFormat",
    "convert",
    "dataset_stats",
    "detect_format",
    "repair_overlap_sums",
    "roi_labels",
    "write_dataset",
]
