#!/usr/bin/env bash
# Sets up and runs all tests. Idempotent, no root, no download but packages. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
install_wsiseg ".[dev]"
"$VENV/bin/ruff" check wsiseg tests benchmarks scripts
"$VENV/bin/ruff" format --check --quiet wsiseg tests benchmarks scripts
"$VENV/bin/mypy"
"$VENV/bin/python" -m pytest -n "${WSISEG_TEST_PROCESSES:-auto}" --dist loadfile "$@"

# The same network on processors that this one can stand for: AVX2 alone, and AVX-512 without VNNI, bf16 and AMX.
[ $# -eq 0 ] || exit 0
predict=(tests/predict --ignore tests/predict/test_predict_inductor.py
  --ignore tests/predict/test_predict_memory.py --ignore tests/predict/test_predict_processors.py)
for caps in "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2" "ONEDNN_MAX_CPU_ISA=AVX512_CORE"; do
  echo "tests/predict with $caps"
  env $caps "$VENV/bin/python" -m pytest -q -n "${WSISEG_TEST_PROCESSES:-auto}" --dist loadfile "${predict[@]}"
done
