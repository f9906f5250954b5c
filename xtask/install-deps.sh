#!/usr/bin/env bash
# Installs what `make build` or `make test` needs and this host lacks, or says what to run.
# usage: xtask/install-deps.sh build|test
set -euo pipefail

nextest_version=0.9.143
what=${1:-}
case $what in build | test) ;; *) echo "usage: $0 build|test" >&2; exit 2 ;; esac

have() { command -v "$1" >/dev/null 2>&1; }

# RocksDB's bindings are made by bindgen, which loads libclang. `libclang-cpp.so` is another library.
have_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null && return
    compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null && return
    (ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null) | grep -Eq 'libclang(-[0-9.]+)?\.so'
}

missing=()
need() { have "$1" || missing+=("$2"); }

if ! have cargo; then
    echo "cargo is missing: install Rust from https://rustup.rs, then run this again" >&2
    exit 1
fi
need g++ g++
have_libclang || missing+=(libclang-dev)
if [[ $what == test ]]; then
    need git git
    need prometheus prometheus
    need prometheus-node-exporter prometheus-node-exporter
    PATH=$PATH:/sbin:/usr/sbin need mkfs.ext4 e2fsprogs
fi

if ((${#missing[@]})); then
    command_line="apt-get install --yes --no-install-recommends ${missing[*]}"
    if ! have apt-get; then
        echo "missing: ${missing[*]} (Debian package names); install them with this system's package manager" >&2
        exit 1
    fi
    if ((EUID != 0)); then
        echo "missing: ${missing[*]}; run this, then try again:" >&2
        echo "    sudo $command_line" >&2
        exit 1
    fi
    echo "installing: ${missing[*]}"
    apt-get update --quiet=2
    # Debian starts a service when it installs one; the tests start their own processes on their own ports.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive $command_line --quiet=2
fi

if [[ $what == test ]] && ! cargo nextest --version >/dev/null 2>&1; then
    echo "installing cargo-nextest $nextest_version (a few minutes)"
    cargo install --locked --version "$nextest_version" cargo-nextest
fi
