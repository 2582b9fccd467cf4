#!/bin/sh
# Installs the wheel that lies in a folder, with the versions of the constraints.txt beside it, into /opt/wsiseg. The Dockerfile and
# wsiseg.def run this as root in a bare Debian; nothing later writes to what it installs.
#
#     TORCH_INDEX   index that has the wanted build of torch (CPU, CUDA 12, CUDA 13)
#     EXTRAS        extras of wsiseg, separated by commas (cuda13 or cuda12 for GPUs)
set -eu
dist=${1:?usage: install.sh FOLDER}
: "${TORCH_INDEX:=https://download.pytorch.org/whl/cpu}" "${EXTRAS:=query,review}"
apt-get update
apt-get install -y --no-install-recommends python3-venv ca-certificates
rm -rf /var/lib/apt/lists/*
wheel=$(ls "$dist"/wsiseg-*.whl)
python3 -m venv /opt/wsiseg
pip() { /opt/wsiseg/bin/pip --disable-pip-version-check "$@"; }
pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep '^torch==' "$dist/constraints.txt")"
pip install --no-cache-dir --constraint "$dist/constraints.txt" "$wheel[$EXTRAS]"
case ",$EXTRAS," in
*,cuda1[23],*) ;; # has it, with what it needs for GPUs
*) # the fast reader runs without a GPU; what it declares to need would bring gigabytes of CUDA
    pip install --no-cache-dir --constraint "$dist/constraints.txt" --no-deps cucim-cu13 lazy-loader ;;
esac
# some institutes' file systems and user ids: everybody may read and run it
chmod -R a+rX /opt/wsiseg
mkdir -p /data && chmod 1777 /data
