"""Normalize stains: map uint8 (h, w, 3) of any slide to the reference slide's colors.

``fit_stain`` runs once per slide (a ``Stain`` is a slide constant); ``normalize`` is a function of one px and that constant,
so its result does not depend on tiles. White stays white.
"""

from wsiseg.normalize.stain import fit_stain, normalize

__all__ = ["fit_stain", "normalize"]
