"""Collect what a bare GPU machine lacks, in two sets that each fit into 64 MiB beside the source tree.

    python -m benchmarks.gpu_carry [--python 3.12]

``carry/read``: OpenSlide, Pillow, tifffile, cuCIM (27 MB): parity, stage table, end to end with every reader; tiles are then
raw columns. ``carry/write``: OpenSlide, Pillow, tifffile and pyarrow without what a Parquet writer never loads (43 instead of
66 MB): end to end with real part files. torch, CuPy, NumPy, SciPy and safetensors must be there. Needs pip and a network.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

CARRY = Path(__file__).resolve().parents[1] / "carry"
BOTH = ("openslide-python", "openslide-bin", "pillow", "tifffile", "click", "safetensors")
SETS = {"read": (*BOTH, "cucim-cu13", "lazy-loader"), "write": (*BOTH, "pyarrow")}
GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
PLATFORMS = [*(f"manylinux_{v}_x86_64" for v in GLIBC), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
NEVER_LOADED = re.compile(
    r"pyarrow/(tests|include|src|libarrow_(flight|s3|python_flight)|_(flight|s3fs|gcsfs|azurefs|orc|substrait)\.|_pyarrow_cpp_tests)"
    r"|\.(pxd|pyx|pxi|h)$"
)
COPIES = re.compile(r"pyarrow/libarrow_python\w*\.so(\.\d+\.\d+\.\d+)?$")
"""The wheel holds each of these libraries three times; programs are linked to the name with one number."""


def download(names: tuple[str, ...], folder: Path, python: str) -> None:
    """Download wheels for the device machine's Python."""
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, "-d", str(folder), *names], check=True)


def slim(wheel: Path) -> None:
    """Write the wheel again without files that are never loaded."""
    kept = wheel.with_suffix(".slim")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for entry in source.infolist():
            if not NEVER_LOADED.search(entry.filename) and not COPIES.search(entry.filename):
                target.writestr(entry, source.read(entry))
    kept.replace(wheel)


def main() -> None:
    """Fill both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="The device machine's Python.")
    args = parser.parse_args()
    for name, packages in SETS.items():
        folder = CARRY / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.whl"):
            old.unlink()
        download(packages, folder, args.python)
        for wheel in folder.glob("pyarrow-*.whl"):
            slim(wheel)
        print(f"{folder}: {sum(w.stat().st_size for w in folder.glob('*.whl')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
