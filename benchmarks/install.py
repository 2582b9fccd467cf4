"""Install the wheel as a new user does: megabytes and seconds in fresh environments, first segment of a user without HOME.

    python -m benchmarks.install --python /usr/bin/python3.11 --python python3.12 [--index URL | --without-torch]

The wheel is built from this checkout and installed with the versions of ``constraints.txt``. As root the first ``segment`` is
done by user 65534 with an empty environment, outside the checkout, with an installation that it cannot write to; else by who
runs this, with an empty environment; others must be able to read the interpreter. ``--index``: torch is taken from there.
``--without-torch``: everything else is installed, and ``info`` takes the place of ``segment``; for where only PyPI's build can
be had, which is gigabytes. Results, by version of Python and build of torch: ``benchmarks/results/install.json``.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from packaging.requirements import Requirement
from PIL import Image

from benchmarks._machine import RESULTS, machine, saved

ROOT = Path(__file__).resolve().parents[1]
SLIDE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"
NOBODY = 65534


def run(*command: object, **options: Any) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a program; return it and its seconds."""
    start = time.perf_counter()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    return done, round(time.perf_counter() - start, 2)


def well(*command: object, **options: Any) -> tuple[str, float]:
    """Run a program that must succeed; return what it printed and its seconds."""
    done, seconds = run(*command, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout, seconds


def folder_mb(folder: Path) -> float:
    """Return the size of all files below a folder, each once, in MB."""
    found = {(s.st_dev, s.st_ino): s.st_size for s in (p.lstat() for p in folder.rglob("*") if not p.is_dir())}
    return round(sum(found.values()) / 1e6, 1)


SIZES = """
import importlib.metadata, json
size = lambda d: sum(f.locate().stat().st_size for f in d.files or () if f.locate().is_file())
print(json.dumps({d.name: [d.version, round(size(d) / 1e6, 1)] for d in importlib.metadata.distributions()}))
"""


def without_torch(wheel: Path) -> list[str]:
    """Return the wheel and all that it needs but torch, as arguments of pip."""
    text = zipfile.ZipFile(wheel).read(f"{wheel.name.rsplit('-', 3)[0]}.dist-info/METADATA").decode()
    wanted = [Requirement(r) for r in email.message_from_string(text).get_all("Requires-Dist", [])]
    return [str(r) for r in wanted if r.name != "torch" and r.marker is None]


def install(python: str, wheel: Path, scratch: Path, index: str, torch: bool) -> tuple[Path, dict[str, Any]]:
    """Install the wheel into a fresh environment; return the environment and what it took."""
    version = re.sub(r"^Python ", "", well(python, "--version")[0].strip())
    venv = scratch / f"venv-{version}"
    well(python, "-m", "venv", venv)
    before = folder_mb(venv)
    pip = (venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    pin = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    first_s = well(*pip, "--index-url", index, *pin)[1] if index else 0.0
    if torch:
        _, seconds = well(*pip, "-c", ROOT / "constraints.txt", wheel)
    else:
        _, seconds = well(*pip, "-c", ROOT / "constraints.txt", *without_torch(wheel))
        seconds += well(*pip, "--no-deps", wheel)[1]
    sizes = json.loads(well(venv / "bin/python", "-I", "-c", SIZES)[0])
    largest = sorted(sizes.items(), key=lambda item: -item[1][1])
    starts = [well(venv / "bin/wsiseg", "--version")[1] for _ in range(3)]
    return venv, {
        "python": version,
        "install_s": round(first_s + seconds, 2),
        "installed_mb": round(folder_mb(venv) - before, 1),
        "packages": len(sizes),
        "torch": sizes["torch"][0] if torch else "none",
        "cuda_packages": sorted(name for name in sizes if name.startswith(("nvidia-", "cuda-", "triton"))),
        "largest_mb": {f"{name} {v}": mb for name, (v, mb) in largest[:8]},
        "version_command_s": min(starts),
    }


def first_command(venv: Path, home: Path, slide: Path, torch: bool) -> dict[str, Any]:
    """Segment (or, without torch, look at the slide) as somebody who has a folder of work, and nothing else."""
    home.mkdir()
    here = home / slide.name
    shutil.copyfile(slide, here)
    prefix: list[str] = ["env", "-i", "PATH=/usr/bin:/bin"]
    user = os.getuid()
    if os.getuid() == 0 and shutil.which("setpriv"):
        user = NOBODY
        os.chown(home, user, user)
        os.chown(here, user, user)
        prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *prefix]
    facts: dict[str, Any] = {"uid": user, "command": "segment" if torch else "info"}
    if not torch:
        done, facts["first_s"] = run(*prefix, venv / "bin/wsiseg", "info", here.name, "--mpp", "0.499", cwd=home)
        facts["first_exit"] = done.returncode
        facts["said"] = (done.stdout + done.stderr)[-600:]
        return facts
    command = (*prefix, venv / "bin/wsiseg", "segment", here.name, "--mpp", "0.499", "--precision", "fp32", "--workers", "2")
    for name in ("first", "second"):
        done, seconds = run(*command, "--out", name, cwd=home)
        facts[f"{name}_s"], facts[f"{name}_exit"] = seconds, done.returncode
        table = home / name / "nuclei" / f"{slide.stem}.parquet"
        facts[f"{name}_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else ""
        if done.returncode:
            facts["said"] = (done.stdout + done.stderr)[-600:]
            break
        facts["nuclei"] = int(re.findall(r"^nuclei +([\d,]+)", done.stdout, re.MULTILINE)[0].replace(",", ""))
    facts["left_behind"] = sorted(p.name for p in home.iterdir() if p.name not in (slide.name, "first", "second"))
    return facts


def main() -> None:
    """Measure all of it and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="an interpreter; may be given several times")
    parser.add_argument("--index", default="", help="index to take torch from")
    parser.add_argument("--without-torch", action="store_true", help="install everything but torch")
    parser.add_argument("--scratch", type=Path, default=None)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="wsiseg-install-", dir=args.scratch))
    scratch.chmod(0o755)  # the other user must reach it
    try:
        _, build_s = well(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", scratch / "dist", ROOT)
        (wheel,) = (scratch / "dist").glob("*.whl")
        crop = scratch / "crop.png"  # at 0.5 um/px: its pixels are resampled
        with openslide.OpenSlide(SLIDE) as slide:
            Image.fromarray(np.asarray(slide.read_region((900, 1100), 0, (620, 540)).convert("RGB"))).save(crop)
        torch = not args.without_torch
        path = RESULTS / "install.json"
        found = saved("install").get("environments", {})
        for python in args.python or [sys.executable]:
            venv, facts = install(python, wheel, scratch, args.index, torch)
            facts["first_command"] = first_command(venv, scratch / f"home-{facts['python']}", crop, torch)
            print(json.dumps(facts))
            found[f"Python {facts['python']}, torch {facts['torch']}"] = facts
            shutil.rmtree(venv)
        result = {
            "machine": machine(),
            "wheel": {"name": wheel.name, "mb": round(wheel.stat().st_size / 1e6, 1), "build_s": build_s},
            "environments": dict(sorted(found.items())),
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
