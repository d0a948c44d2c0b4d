#!/bin/sh
# Puts uv into a private virtual environment: sh ops/bootstrap.sh FOLDER
# Writes FOLDER/bin/uv and FOLDER/python (the interpreter found). Changes nothing else; only as root, and only when Debian's
# venv module is missing, it installs the package python3-venv.
set -eu

folder=$1
needed="Python 3.11 or newer"

usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in python3.13 python3.12 python3.11 python3.14 python3; do
        if command -v "$name" >/dev/null 2>&1 && usable "$name"; then
            "$name" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

has_venv() {
    "$1" -c 'import venv, ensurepip' >/dev/null 2>&1
}

install_venv_package() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        return 1
    fi
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "installing the package python3-venv"
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "python$version-venv" >/dev/null ||
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
}

if ! python=$(find_python); then
    echo "staybus needs $needed; none of python3.13, python3.12, python3.11, python3 is one." >&2
    echo "Install it, for example: apt-get install python3 python3-venv" >&2
    exit 1
fi

rm -rf "$folder"
mkdir -p "$folder"

if has_venv "$python" || { install_venv_package "$python" && has_venv "$python"; }; then
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
elif "$python" -m pip --version >/dev/null 2>&1; then
    # No venv module, but a pip: uv needs no environment of its own.
    "$python" -m pip install --quiet --disable-pip-version-check --target "$folder/packages" uv
    mkdir -p "$folder/bin"
    ln -s ../packages/bin/uv "$folder/bin/uv"
elif found=$(command -v uv); then
    mkdir -p "$folder/bin"
    ln -s "$found" "$folder/bin/uv"
else
    echo "$python has neither the module venv nor pip. Run: sudo apt-get install python3-venv" >&2
    echo "(or install uv yourself and put it on PATH), then run make again." >&2
    exit 1
fi

"$folder/bin/uv" --version
printf '%s\n' "$python" >"$folder/python"
