"""Apply the loss of JPEG compression to a batch on its device, for augmentation.

The steps are color transform (JFIF), halved chroma, 8x8 cosine transform, and quantization by the tables of ITU-T T.81 annex K
scaled by quality as in the library of the Independent JPEG Group; then the inverse of each. Entropy coding is lossless and
therefore left out.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

__all__ = ["jpeg_quantized"]

_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_quantized(rgb: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Return the pixels after compression to JPEG with 4:2:0 chroma and decompression.

    Parameters
    ----------
    rgb : float32 (N, 3, H, W)
        0..255.
    quality : float32 (N,)
        1 to 100, as in libjpeg and Pillow.

    Returns
    -------
    float32 (N, 3, H, W)
        Integer values, 0..255.
    """
    h, w = rgb.shape[2:]
    padded = functional.pad(rgb.round().clamp(0, 255), (0, -w % 16, 0, -h % 16), mode="replicate")
    ycc = torch.einsum("kc,nchw->nkhw", rgb.new_tensor(_TO_YCC), padded).round()
    luma = _quantized(ycc[:, :1] - 128, rgb.new_tensor(_LUMA), quality) + 128
    # halves are rounded as in libjpeg: down and up in alternate columns
    odd = torch.arange(padded.shape[3], device=rgb.device) % 2
    halved = torch.floor(functional.avg_pool2d(ycc[:, 1:], 2) + (1 + odd[: len(odd) // 2]) / 4)
    chroma = _quantized(halved, rgb.new_tensor(_CHROMA), quality).round().clamp(-128, 127)
    chroma = torch.floor(functional.interpolate(chroma, scale_factor=2, mode="bilinear") + (8 - odd) / 16)
    ycc = torch.cat([luma.round().clamp(0, 255), chroma], 1)
    return torch.einsum("kc,nchw->nkhw", rgb.new_tensor(_TO_RGB), ycc)[:, :, :h, :w].round().clamp(0, 255)


def _quantized(planes: torch.Tensor, table: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    n, c, h, w = planes.shape
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    steps = torch.floor((table * percent[:, None] + 50) / 100).clamp(1, 255).view(n, 1, 1, 1, 8, 8)
    blocks = planes.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    cosines = _cosines(planes)
    coefficients = torch.round(cosines @ blocks @ cosines.T / steps) * steps
    return (cosines.T @ coefficients @ cosines).transpose(3, 4).reshape(n, c, h, w)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    """Return the matrix of the orthonormal cosine transform of 8 values, one frequency per row."""
    k = torch.arange(8, dtype=torch.float64)
    basis = 0.5 * torch.cos(math.pi / 8 * k[:, None] * (k + 0.5))
    basis[0] *= math.sqrt(0.5)
    return basis.to(like)
