#!/usr/bin/env bash
# Sets up and runs all tests. Idempotent, no root, no download but packages. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
install_wsiseg ".[dev]"
"$VENV/bin/ruff" check wsiseg tests benchmarks scripts
"$VENV/bin/mypy"
"$VENV/bin/python" -m pytest -n "${WSISEG_TEST_PROCESSES:-auto}" --dist loadfile "$@"
