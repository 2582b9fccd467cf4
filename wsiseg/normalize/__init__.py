"""Pixels -> pixels of one look: uint8 (h, w, 3) of any slide in, its tissue in the reference slide's colors out.

``fit_stain`` runs once a slide (a ``Stain`` is a slide constant); ``normalize`` is a function of one px and that constant,
so it cannot tell one tile from another. White stays white.
"""

from wsiseg.normalize.stain import fit_stain, normalize

__all__ = ["fit_stain", "normalize"]
