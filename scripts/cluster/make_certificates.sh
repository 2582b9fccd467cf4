#!/usr/bin/env bash
# Certificates for a Dask cluster whose machines trust only each other:
#
#     scripts/cluster/make_certificates.sh DIR [DAYS]
#
# makes DIR/ca.pem (the authority), DIR/cert.pem and DIR/key.pem (one pair for scheduler, workers and client). Then:
#
#     dask scheduler --protocol tls --no-dashboard --dashboard-address 127.0.0.1:0 --tls-ca-file DIR/ca.pem --tls-cert DIR/cert.pem --tls-key DIR/key.pem
#     dask worker tls://HEAD:8786 --no-dashboard --tls-ca-file DIR/ca.pem --tls-cert DIR/cert.pem --tls-key DIR/key.pem
#     wsiseg segment SLIDES --out RUN --scheduler tls://HEAD:8786 --tls-ca DIR/ca.pem --tls-cert DIR/cert.pem --tls-key DIR/key.pem
#
# The scheduler's dashboard would be plain HTTP, open to all: without one, and with its HTTP port on its own machine only, nothing
# is shown. A worker that outlives its scheduler does not join the next one: start workers anew after it.
#
# Who has no certificate of this authority can neither read the traffic nor send tasks, which would be code that the workers run.
set -euo pipefail
umask 077
dir=${1:?usage: make_certificates.sh DIR [DAYS]}
days=${2:-365}
mkdir -p "$dir"
new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${new[@]}" -days "$days" -subj "/CN=wsiseg cluster authority" -keyout "$dir/ca-key.pem" -out "$dir/ca.pem"
openssl req "${new[@]}" -subj "/CN=wsiseg cluster" -keyout "$dir/key.pem" -out "$dir/request.pem"
openssl x509 -req -days "$days" -in "$dir/request.pem" -CA "$dir/ca.pem" -CAkey "$dir/ca-key.pem" -CAcreateserial -out "$dir/cert.pem"
rm -f "$dir/ca-key.pem" "$dir/request.pem" "$dir/ca.srl" # no further certificate can be made: make all anew instead
