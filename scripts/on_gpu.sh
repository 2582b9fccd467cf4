#!/usr/bin/env bash
# What a lent machine's 15 minutes are spent on: parity with the CPU's stored answers, the stage table with its floors, slide to
# polygons end to end, then training with the time that is left. Each step writes its own JSON at once. It needs a GPU and torch,
# CuPy, NumPy, SciPy, safetensors; nothing is downloaded there. Prepare it elsewhere, in the project's environment:
#   python -m benchmarks.gpu_expectations             # the CPU's answers -> carry/gpu_expectations.npz (about 18 MB)
#   python -m benchmarks.gpu_carry                    # wheels for its Python 3.12 -> carry/read (27 MB), carry/write (43 MB)
#   python -m benchmarks.gpu_train pack SETS                 # training images -> carry/train.zip (34 MB)
# which downloads, for the first of the two folders,
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
#     --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d carry/read \
#     openslide-python openslide-bin pillow tifffile click safetensors cucim-cu13 lazy-loader
# Where no more than 64 MiB may travel at once, the source tree (20 MB) counted: first carry/read and the answers, steps "parity stages
# end"; then carry/train.zip alone, step "train", with the time that is left (TRAIN_MINUTES); carry/write and "end" another time. Steps
# end by themselves: parity within 2.5 minutes, stages 4, end 3. A second call on the machine while it is warm finds it as it was.
# TRAIN_CONFIG names another training config than scripts/train_on_gpu.toml; pack it with the same --config.
# Usage: scripts/on_gpu.sh [--dry] [folder for the JSON, default benchmarks/results] [steps, default "parity stages end train"]
# --dry: the same steps on the CPU with tiny sizes; every JSON then says "measured": false.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
python=${PYTHON:-python3}
dry=
if [ "${1:-}" = --dry ]; then
  dry=1
  shift
fi
out=${1:-benchmarks/results}
steps=${2:-parity stages end train}
carry=${WSISEG_CARRY:-carry}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
wheels=$([ -n "${WSISEG_NO_WHEELS:-}" ] || compgen -G "$carry/*/*.whl" || true)
if [ -n "$wheels" ]; then
  # one by one: a wheel for another Python is left out, and what needs it says so; what the machine has itself comes first
  for wheel in $wheels; do
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target "$site" "$wheel" ||
      echo "on_gpu.sh: $wheel does not fit $("$python" --version)" >&2
  done
  own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  export PYTHONPATH="$PYTHONPATH:$own:$site"
fi
if [ -z "$dry" ]; then
  "$python" - << 'PY'
import importlib.util, sys
missing = [name for name in ("torch", "cupy", "numpy", "scipy", "safetensors") if importlib.util.find_spec(name) is None]
sys.exit(f"on_gpu.sh: missing here: {', '.join(missing)}. pip install 'wsiseg[gpu]'." if missing else 0)
PY
  "$python" -c "from wsiseg.predict.gpu import cuda_obstacle; import sys; sys.exit(cuda_obstacle() or 0)"
fi
status=0
for step in $steps; do
  case $step in
    parity | stages) needed=$carry/gpu_expectations.npz made="python -m benchmarks.gpu_expectations, where Numba is" ;;
    train) needed=$carry/train.zip made="python -m benchmarks.gpu_train pack SETS" ;;
    *) needed= ;;
  esac
  if [ -n "$needed" ] && [ ! -f "$needed" ]; then
    echo "on_gpu.sh: $needed is missing: $made." >&2
    status=2
    continue
  fi
  echo "== $step, $SECONDS s after the start"
  case $step in
    parity) timeout 150 "$python" -m benchmarks.gpu_parity --out "$out" ${dry:+--device cpu --most-px 40000} || status=1 ;;
    stages) timeout 240 "$python" -m benchmarks.gpu_stages --out "$out" ${dry:+--device cpu} || status=1 ;;
    end)
      timeout 180 "$python" -m benchmarks.gpu_end_to_end --seconds 20 --out "$out" ${dry:+--device cpu --quick --dry} || status=1
      ;;
    train)
      minutes=${TRAIN_MINUTES:-3}
      timeout $((60 * minutes + 90)) "$python" -m benchmarks.gpu_train run "$out" --pack "$carry/train.zip" --minutes "$minutes" \
        --config "${TRAIN_CONFIG:-scripts/train_on_gpu.toml}" ${dry:+--device cpu --dry --minutes 0.05} || status=1
      ;;
    *)
      echo "on_gpu.sh: no step $step: expected parity, stages, end, train" >&2
      exit 2
      ;;
  esac
done
exit $status
