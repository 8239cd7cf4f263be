#!/usr/bin/env bash
# Rewrites constraints.txt: what a clean install of every extra resolves to today.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ".[dev,hdf5,text,models,bench]"
{
    echo "# What the tests run against: versions of a clean install of every extra, with Python 3.11."
    echo "# Rewritten by 'make lock'."
    "$work/venv/bin/pip" freeze --exclude annheal
} >"$work/constraints.txt"
cp "$work/constraints.txt" constraints.txt
