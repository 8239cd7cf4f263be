#!/usr/bin/env bash
# Generates Python messages, type stubs and gRPC stubs from protos/ into the directory $1.
# Paths inside protos/ are Python packages: protos/annheal/v1/x.proto -> $1/annheal/v1/x_pb2.py.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: scripts/generate_protos.sh OUTPUT_DIRECTORY}
python=${PYTHON:-.venv/bin/python}

mapfile -t files < <(find protos -name '*.proto' | LC_ALL=C sort)
# A file without services would yield an empty *_pb2_grpc.py.
mapfile -t with_services < <(grep -lE '^service ' "${files[@]}" || true)

"$python" -m grpc_tools.protoc -I protos --python_out="$out" --pyi_out="$out" "${files[@]}"
if [ ${#with_services[@]} -gt 0 ]; then
    "$python" -m grpc_tools.protoc -I protos --grpc_python_out="$out" "${with_services[@]}"
fi
