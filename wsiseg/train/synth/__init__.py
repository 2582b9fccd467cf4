"""Make synthetic training images with exact labels, in the style of a target cohort that has no annotations.

Input: label images of a reference, which define the shapes of nuclei, and pictures of the target cohort. Output: pictures,
labels and, after refinement, a weight for each. After Hou et al. 2019, "Robust Histopathology Image Analysis: to Label or to
Synthesize?" (CVPR): random polygons (``shapes``, ``place``), textures of real patches (``paint``), a refiner trained against a
discriminator (``nets``, ``refine``), and weights from the discriminator's output. ``wsiseg.train.synthesis`` makes whole sets.
"""

from __future__ import annotations

from wsiseg.train.synth.nets import Discriminator, Refiner
from wsiseg.train.synth.paint import in_paint, rough_nuclei
from wsiseg.train.synth.place import Placed, place_nuclei
from wsiseg.train.synth.refine import RefineConfig, importance_weights, load_refiner, refine_and_weigh, train_refiner
from wsiseg.train.synth.shapes import ShapeStatistics, draw_outlines, fit_shapes, shape_table

__all__ = [
    "Discriminator",
    "Placed",
    "RefineConfig",
    "Refiner",
    "ShapeStatistics",
    "draw_outlines",
    "fit_shapes",
    "importance_weights",
    "in_paint",
    "load_refiner",
    "place_nuclei",
    "refine_and_weigh",
    "rough_nuclei",
    "shape_table",
    "train_refiner",
]
