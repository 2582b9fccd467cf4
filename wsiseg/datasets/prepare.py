"""``wsiseg datasets patches`` and ``masks``: write a patch store or auxiliary masks, and return the lines to print."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_auxiliary_masks", "write_patches"]


def write_patches(root: Path, out: Path, sets: tuple[str, ...], patch_px: int) -> list[str]:
    """Write sets as one patch store; return a line per set to print. Raises ``FormatError``, see ``store_patches``."""
    from wsiseg.datasets.samples import store_patches

    counts = store_patches(root, out, sets, patch_px)
    return [f"{name}: {n} patches of {patch_px} px -> {out}" for name, n in counts.items()]


def write_auxiliary_masks(source: Path, out: Path, w0: float, sigma2_px2: float) -> str:
    """Write CryoNuSeg's auxiliary masks of a set; return a line to print. Raises ``FormatError``, see ``write_masks``."""
    from wsiseg.datasets.masks import write_masks

    return f"masks of {write_masks(source, out, w0, sigma2_px2)} images -> {out}"
