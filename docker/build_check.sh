#!/usr/bin/env bash
# Builds the image without a Docker engine and lets it answer once.
#
#   docker/build_check.sh WORKDIR
#
# Needs root, buildah and, unless BASE names an image, debootstrap: then the base image is a
# minimal Debian with python3, made here. WORKDIR keeps the base image between runs.
#
#   BASE            base image (default: made from debootstrap)
#   DEBIAN_MIRROR   mirror for debootstrap (default: debootstrap's own)
#   TORCH_ARGS      arguments for `pip install torch`, such as another index
#   BUILDAH_EXTRA   further arguments of `buildah bud`, such as -v for pip's configuration
#   MODEL           model folder to serve (default: the demo model inside the image)
#   IMAGE           image file to ask about (default: the demo's)
#   PORT            port for the check (default: 18080)
set -euo pipefail

work="$(mkdir -p "${1:?usage: docker/build_check.sh WORKDIR}" && cd "$1" && pwd)"
repo="$(cd "$(dirname "$0")/.." && pwd)"
base="${BASE:-}"
port="${PORT:-18080}"
tag=localhost/disp-server:check
url="http://127.0.0.1:$port"

b() { buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"; }
say() { printf '\n== %s\n' "$*"; }

make_base() {
    base=localhost/disp-base:bookworm
    if b inspect --type image "$base" >/dev/null 2>&1; then return; fi
    say "base image $base"
    if [[ ! -e "$work/rootfs/usr/bin/python3" ]]; then
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
            bookworm "$work/rootfs" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
    fi
    local container
    container="$(b from scratch)"
    b add --quiet "$container" "$work/rootfs" /
    b commit --quiet --rm "$container" "$base"
}

build() {
    say "build from $base"
    local extra=()
    read -ra extra <<<"${BUILDAH_EXTRA:-}"
    b bud --format docker --isolation chroot --network host \
        --build-arg BASE="$base" --build-arg TORCH_ARGS="${TORCH_ARGS:-}" \
        ${extra[@]+"${extra[@]}"} --file "$repo/docker/Dockerfile" --tag "$tag" "$repo"
    b inspect --type image --format \
        'user {{.Docker.Config.User}}, health {{.Docker.Config.Healthcheck.Test}}' "$tag"
}

inside() { b run --isolation chroot --network host "${mounts[@]}" "$container" -- "$@"; }

# Isolation by chroot shares the host's process ids; a signal to buildah would not arrive inside.
stop() {
    [[ -n "${server:-}" ]] || return 0
    local running="$server"
    server=
    [[ -s "$work/state/pid" ]] && kill "$(<"$work/state/pid")"
    wait "$running"
}

check() {
    say "start"
    container="$(b from "$tag")"
    trap 'stop || true; b rm "$container" >/dev/null' EXIT
    mkdir -p "$work/secrets" "$work/state"
    chmod 1777 "$work/state"
    rm -f "$work/state/pid"
    printf 'sk-%s\n' "$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')" \
        >"$work/secrets/disp_api_key"
    chmod 644 "$work/secrets/disp_api_key"
    mounts=(--volume "$work/secrets:/run/secrets:ro" --volume "$work/state:/state")
    local what=(--demo)
    if [[ -n "${MODEL:-}" ]]; then
        mounts+=(--volume "$(realpath "$MODEL"):/model:ro")
        what=(--model /model)
    fi
    local image
    image="$(inside sh -c 'echo /opt/disp/lib/python3*/site-packages/purifier/lab/demo/examples/clean.jpg')"
    if [[ -n "${IMAGE:-}" ]]; then
        mounts+=(--volume "$(realpath "$(dirname "$IMAGE")"):/images:ro")
        image="/images/$(basename "$IMAGE")"
    fi

    [[ "$(inside id -u)" == 10001 ]] || { echo "the image runs as root" >&2; exit 1; }
    inside sh -c 'echo $$ >/state/pid; exec "$@"' sh \
        disp serve --host 127.0.0.1 --port "$port" "${what[@]}" \
        --key-file /run/secrets/disp_api_key &
    server=$!
    until inside disp health --base-url "$url" 2>/dev/null; do
        kill -0 "$server" || { echo "the server ended before it was ready" >&2; exit 1; }
        sleep 1
    done

    say "one answer"
    # The key stays out of the arguments, where every process could read it.
    inside sh -c 'DISP_API_KEY="$(cat /run/secrets/disp_api_key)" disp ask --base-url "$0" --json "$@"' \
        "$url" "$image" "Describe the image."
    inside disp doctor

    say "stop"
    stop
    say "passed"
}

if [[ -z "$base" ]]; then make_base; fi
build
check
