#!/usr/bin/env bash
# Creates .venv and installs annheal into it, editable, with the extras given as $1.
# Needs Python >= 3.11 and nothing else. PYTHON=... chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:?usage: scripts/setup.sh EXTRAS}
venv=.venv

is_recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$candidate" ] && is_recent_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "annheal needs Python 3.11 or newer and found none. Install one (Debian 12 or newer:" >&2
    echo "  apt-get install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.12" >&2
    return 1
}

install_debian_venv() {
    # Debian splits ensurepip out of python3 into a package of its own.
    local python=$1 package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package, which this Python needs to create virtual environments" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$package" >&2
    else
        echo "This Python cannot create virtual environments. As root: apt-get install $package" >&2
        return 1
    fi
}

if ! { [ -x "$venv/bin/python" ] && is_recent_enough "$venv/bin/python" &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    echo "creating $venv with $("$python" --version)"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || install_debian_venv "$python"
    "$python" -m venv --clear "$venv"
fi

echo "installing annheal[$extras] into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    -c constraints.txt -e ".[$extras]"

# Compiling takes about a minute of one core, once for a user, version and processor. Nothing waits
# for it: servers, demos and tests use each kernel as soon as it is ready.
if ! "$venv/bin/python" -c 'import sys
from annheal.index.kernels.cache import open_cache
sys.exit(bool(open_cache().missing()))'; then
    echo "compiling search kernels in the background ($venv/bin/annheal kernels status)"
    nohup nice -n 10 "$venv/bin/annheal" kernels build </dev/null >/dev/null 2>&1 &
fi
