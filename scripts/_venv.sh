# Sourced by the other scripts: makes .venv (or the folder in WSISEG_VENV) once and brings it up to date. No root needed.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${WSISEG_VENV:-.venv}"
PYTHON="${PYTHON:-python3}"
# The first argument names the extras to install, for example ".[dev]".
install_wsiseg() {
  local what="$1" stamp
  stamp="$VENV/.installed-$(cat pyproject.toml constraints.txt scripts/_venv.sh | cksum | tr -d ' ')-$(printf %s "$what" | cksum | tr -d ' ')"
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  if [ ! -e "$stamp" ]; then
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
    # PyPI's torch brings 4.5 GB of CUDA. Where there is no NVIDIA driver the build for the CPU will do; where its index cannot be
    # reached, the next line takes what there is
    if [ ! -e /proc/driver/nvidia/version ] && ! "$VENV/bin/python" -c "import torch" 2>/dev/null; then
      "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --retries 0 --timeout 20 \
        --index-url "${WSISEG_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" "$(grep '^torch==' constraints.txt)" 2>/dev/null || true
    fi
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$what"
    # cuCIM's reader runs without a GPU; its declared dependencies would pull gigabytes of CUDA libraries that it does not need
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps cucim-cu13 lazy-loader ||
      echo "note: cuCIM's fast reader is not available here; OpenSlide reads everything, more slowly" >&2
    touch "$stamp"
  fi
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
}
