#!/usr/bin/env bash
# On a machine with a GPU and torch, CuPy, NumPy (nothing else is needed, nothing is downloaded): parity with the CPU's stored
# answers, the stage table with its floors, JSON. Prepare it elsewhere, in the project's environment:
#   python -m benchmarks.gpu_expectations                    # -> carry/gpu_expectations.npz
#   pip download safetensors -d carry/wheels --no-deps --only-binary=:all: --python-version 3.12   # for the network's row
# Usage: scripts/on_gpu.sh [folder for the JSON, default benchmarks/results]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
if compgen -G "carry/wheels/*.whl" > /dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --target carry/site carry/wheels/*.whl
  export PYTHONPATH="$PYTHONPATH:$PWD/carry/site"
fi
"$python" - <<'PY'
import importlib.util, sys
missing = [name for name in ("cupy", "numpy") if importlib.util.find_spec(name) is None]
sys.exit(f"on_gpu.sh: missing here: {', '.join(missing)}. pip install 'wsiseg[gpu]'." if missing else 0)
PY
if [ ! -f carry/gpu_expectations.npz ]; then
  echo "on_gpu.sh: carry/gpu_expectations.npz is missing: run 'python -m benchmarks.gpu_expectations' where Numba is." >&2
  exit 2
fi
if "$python" -c "import pytest, hypothesis, numba, skimage" 2> /dev/null; then
  "$python" -m pytest -q -m gpu tests/kernels
fi
timeout 480 "$python" -m benchmarks.gpu_stages --out "${1:-benchmarks/results}"
