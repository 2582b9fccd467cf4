# wsiseg in a container, for the CPU or for CUDA; built from the wheel, with the versions of constraints.txt, for any user id:
#
#     docker build -t wsiseg:0.1.0 .
#     docker build -t wsiseg:0.1.0-cuda13 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg EXTRAS=cuda13 .
#     docker build -t wsiseg:0.1.0-cuda12 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 --build-arg EXTRAS=cuda12 .
#
#     docker run --rm --user "$(id -u):$(id -g)" --read-only --tmpfs /tmp -v /nfs/slides:/slides:ro -v "$PWD:/data" wsiseg:0.1.0 \
#         wsiseg segment /slides --out run
#
# podman and buildah build it too. --build-arg BASE=docker.io/library/debian@sha256:... pins the system as well. The GPU images bring
# CUDA's libraries; the driver comes from the host (--gpus all). scripts/image/try_image.sh builds it without Docker and tries it.
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS wheel
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv ca-certificates && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE constraints.txt /source/
COPY wsiseg /source/wsiseg
COPY kernels /source/kernels
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir -c /source/constraints.txt hatchling \
    && /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w /dist /source

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=query,review
COPY --from=wheel /dist /dist
COPY constraints.txt scripts/image/install.sh /dist/
RUN sh /dist/install.sh /dist && rm -r /dist
# no cache folder and no HOME: the program finds what it may write to by itself
ENV PATH=/opt/wsiseg/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8
# any other user id will do (--user, runAsUser, OpenShift's own): nothing of the image is written to
USER 65532:0
WORKDIR /data
CMD ["wsiseg", "--help"]
