#!/bin/bash
# What the benchmarks have in common; sourced by them with their name in BENCH. Leaves an empty
# directory in `work`, ends the processes in `pids` at exit, and needs two cores.

PATH=$PATH:/usr/sbin
[ "$(nproc)" -ge 2 ] || {
    echo "$BENCH: needs two cores, one for the server and one for the client" >&2
    exit 2
}

work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

# Installs Debian packages, each unless its command, or the file named with it, is there.
install_packages() { # PACKAGE[=FILE]...
    local package missing=() policy=/usr/sbin/policy-rc.d
    for package in "$@"; do
        case $package in
        *=*) [ -e "${package#*=}" ] || missing+=("${package%%=*}") ;;
        *) command -v "$package" >"$work/found" || missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "$BENCH: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # Debian would start nginx as a service at once; this says no while the package is set up.
    [ ! -e $policy ] || policy=
    [ -z $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
    apt-get update </dev/null >/dev/null
    apt-get install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
    [ -z $policy ] || rm $policy
}

# Builds server and client as packages have them, or by the profile in BENCH_PROFILE; `target` is
# where they are.
build() {
    local profile=${BENCH_PROFILE:-dist}
    cargo build --profile "$profile" --quiet --package prefork-server --package testkit
    target=${CARGO_TARGET_DIR:-target}/$profile
}

# Prints a port that is free now; bash can only try.
free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 10000))
        (exec 9<>/dev/tcp/127.0.0.1/$port) 2>/dev/null || { echo $port && return; }
    done
    return 1
}

# Waits until a server answers rightly.
await() { # PORT PATH BODY
    for _ in {1..200}; do
        "$target/loadclient" --fresh 1 --count 1 --path "$2" --expect "$3" "127.0.0.1:$1" \
            >"$work/first" 2>&1 && return
        sleep 0.05
    done
    echo "$BENCH: no right answer at port $1" >&2
    cat "$work/first" >&2
    return 1
}

# Prints the median of the numbers in standard input.
median() {
    sort -n | awk '{ v[NR] = $1 }
        END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
