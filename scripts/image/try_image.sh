#!/usr/bin/env bash
# Builds the Dockerfile without Docker and without a registry, and uses the image as clusters do: any user id, no HOME, no entry in
# passwd, nothing writable but /tmp and one folder. As root, with debootstrap and buildah (apt-get install debootstrap buildah):
#
#     sudo scripts/image/try_image.sh FOLDER        # 6 GB of room; what was found: FOLDER/found.json
#
# BASE_ROOT: a folder with a bare Debian 12, instead of a new one from the network. BUILD_OPTIONS: more words for 'buildah build',
# such as "--volume /srv/wheels:/srv/wheels:ro" for packages of one's own.
set -euo pipefail
work=$(realpath -m "${1:?usage: try_image.sh FOLDER}")
here=$(realpath "$(dirname "$0")/../..")
mkdir -p "$work"
root=${BASE_ROOT:-$work/debian}
[[ -e $root/etc/debian_version ]] || debootstrap --variant=minbase bookworm "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }
if ! buildah inspect --type image localhost/debian:12-slim >/dev/null 2>&1; then
    base=$(buildah from scratch)
    buildah add --quiet "$base" "$root" / >/dev/null
    buildah commit --quiet "$base" localhost/debian:12-slim >/dev/null
    buildah rm "$base" >/dev/null
fi
start=$SECONDS
# shellcheck disable=SC2086 # words
buildah build --isolation chroot --layers=false --build-arg BASE=localhost/debian:12-slim ${BUILD_OPTIONS:-} \
    -t localhost/wsiseg:try -f "$here/Dockerfile" "$here"
build_s=$((SECONDS - start))
container=$(buildah from localhost/wsiseg:try)
image=$(buildah mount "$container")
trap 'buildah rm "$container" >/dev/null' EXIT
size_mb=$(du -sm --apparent-size "$image" | cut -f1)
base_mb=$(du -sm --apparent-size "$root" | cut -f1)
data=$work/data
rm -rf "$data"
install -d -m 777 "$data"
cp "$here/tests/data/CMU-1-Small-Region.svs" "$data/at-20x.svs"

inside() { # in the image, read-only, as user 12345 of group 0, with nothing in the environment but the image's own PATH
    unshare --mount --pid --fork bash -c '
        mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"
        mount -t tmpfs tmpfs "$0/tmp" && mount --bind "$1" "$0/data" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"
        exec chroot --userspec=12345:0 --groups= "$0" /usr/bin/env -i PATH=/opt/wsiseg/bin:/usr/bin:/bin LANG=C.UTF-8 \
            sh -c "cd /data && exec \"\$@\"" sh "${@:2}"' "$image" "$data" "$@"
}
inside touch /opt/wsiseg/x 2>/dev/null && { echo "the image is not read-only" >&2; exit 1; }
inside wsiseg doctor >"$work/doctor.txt"
start=$SECONDS
inside wsiseg demo --out demo --workers 2 >"$work/demo.txt"
demo_s=$((SECONDS - start))
start=$SECONDS
inside wsiseg segment at-20x.svs --out resampled --workers 2 >"$work/resampled.txt" 2>&1 && resampled=true || resampled=false
resampled_s=$((SECONDS - start))
inside dask scheduler --version >/dev/null # the recipes call it
left=$(cd "$data" && ls -A | grep -vxE 'demo|resampled|at-20x.svs' | tr '\n' ' ' || true)
nuclei=$(sed -n 's/^nuclei *\([0-9,]*\) .*/\1/p' "$work/demo.txt" | tr -d ,)
cat >"$work/found.json" <<JSON
{"image_mb": $size_mb, "debian_mb": $base_mb, "build_s": $build_s, "demo_s": $demo_s, "demo_nuclei": $nuclei,
 "segment_20x_ok": $resampled, "segment_20x_s": $resampled_s, "left_behind": "${left% }"}
JSON
cat "$work/found.json"
