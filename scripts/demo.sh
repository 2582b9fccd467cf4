#!/usr/bin/env bash
# Sets up and segments the bundled real slide: table, statistics and overlay in demo-out/. Idempotent, no root.
set -euo pipefail
OUT="${1:-demo-out}"
[[ "$OUT" == /* ]] || OUT="$PWD/$OUT"  # where the caller stands, not where the scripts do
source "$(dirname "$0")/_venv.sh"
install_wsiseg "."
exec "$VENV/bin/wsiseg" demo --out "$OUT"
