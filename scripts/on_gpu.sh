#!/usr/bin/env bash
# On a machine with a GPU and torch, CuPy, NumPy, SciPy, safetensors (nothing is downloaded there): parity with the CPU's stored
# answers, the stage table with its floors, slide to polygons end to end; JSON. Under 8 minutes. Prepare it elsewhere, in the
# project's environment:
#   python -m benchmarks.gpu_expectations     # the CPU's answers -> carry/gpu_expectations.npz (15 MB)
#   python -m benchmarks.gpu_carry            # wheels for its Python 3.12 -> carry/read (27 MB), carry/write (43 MB)
# which downloads, for the first of the two folders,
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d carry/read \
#     openslide-python openslide-bin pillow tifffile click safetensors cucim-cu13 lazy-loader
# Where no more than 64 MiB may travel: once with carry/read and the answers, once with carry/write and the step "end" alone.
# Usage: scripts/on_gpu.sh [folder for the JSON, default benchmarks/results] [steps, default "parity stages end"]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
python=${PYTHON:-python3}
out=${1:-benchmarks/results}
steps=${2:-parity stages end}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
wheels=$([ -n "${WSISEG_NO_WHEELS:-}" ] || compgen -G "carry/*/*.whl" || true)
if [ -n "$wheels" ]; then
  # one by one: a wheel for another Python is left out, and what needs it says so; what the machine has itself comes first
  for wheel in $wheels; do
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" "$wheel" ||
      echo "on_gpu.sh: $wheel does not fit $("$python" --version)" >&2
  done
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  export PYTHONPATH="$PYTHONPATH:$own:$site"
fi
"$python" - <<'PY'
import importlib.util, sys
missing = [name for name in ("torch", "cupy", "numpy", "scipy", "safetensors") if importlib.util.find_spec(name) is None]
sys.exit(f"on_gpu.sh: missing here: {', '.join(missing)}. pip install 'wsiseg[gpu]'." if missing else 0)
PY
"$python" -c "from wsiseg.predict.gpu import cuda_obstacle; import sys; sys.exit(cuda_obstacle() or 0)"
status=0
for step in $steps; do
  case $step in
    parity | stages)
      if [ ! -f carry/gpu_expectations.npz ]; then
        echo "on_gpu.sh: carry/gpu_expectations.npz is missing: run 'python -m benchmarks.gpu_expectations' where Numba is." >&2
        exit 2
      fi
      ;;
  esac
  case $step in
    parity)
      if "$python" -c "import pytest, hypothesis, numba, skimage" 2> /dev/null; then
        timeout 180 "$python" -m pytest -q -m gpu tests/kernels || status=1
      elif [[ " $steps " != *" stages "* ]]; then
        timeout 120 "$python" -m benchmarks.gpu_stages --parity-only --out "$out" || status=1
      fi
      ;;
    stages) timeout 240 "$python" -m benchmarks.gpu_stages --out "$out" || status=1 ;;
    end) timeout 240 "$python" -m benchmarks.gpu_end_to_end --seconds 25 --out "$out" || status=1 ;;
    *)
      echo "on_gpu.sh: no step $step: expected parity, stages, end" >&2
      exit 2
      ;;
  esac
done
exit $status
