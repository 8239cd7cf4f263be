#!/usr/bin/env bash
# Fails when the committed generated code is not what protos/ generates today.
set -euo pipefail
cd "$(dirname "$0")/.."

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
bash scripts/generate_protos.sh "$fresh"

stale=0
while IFS= read -r file; do
    cmp -s "$file" "$fresh/$file" && continue
    echo "stale or missing: $file" >&2
    stale=1
done < <(cd "$fresh" && find . -name '*_pb2*.py*' -printf '%P\n' | LC_ALL=C sort)

while IFS= read -r file; do
    if [ ! -e "$fresh/$file" ]; then
        echo "generated from no .proto file: $file" >&2
        stale=1
    fi
done < <(find annheal -name '*_pb2*.py' -o -name '*_pb2*.pyi' | LC_ALL=C sort)

if [ "$stale" = 1 ]; then
    echo "run 'make proto' and commit the result" >&2
    exit 1
fi
echo "generated code is fresh"
