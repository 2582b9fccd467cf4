#!/usr/bin/env bash
# Sets up and segments the bundled real slide: table, statistics and overlay in demo-out/. Idempotent, no root.
set -euo pipefail
source "$(dirname "$0")/_venv.sh"
install_wsiseg "."
OUT="${1:-demo-out}"
exec "$VENV/bin/wsiseg" demo --out "$OUT"
