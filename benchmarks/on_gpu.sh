#!/usr/bin/env bash
# Everything about a GPU that can be measured, in one go of about ten minutes: tests/gpu, then each benchmark that has a
# GPU's aim, with its results as JSON in a folder.
#
#   benchmarks/on_gpu.sh FOLDER [--peer NAME=PYTHON[:CHECKOUT] ...]     PYTHON=/path/to/python if not the first one found
set -uo pipefail
out=${1:?a folder for the results}
shift
python=${PYTHON:-python}
cd "$(dirname "$0")/.."
mkdir -p "$out"
cores=$(nproc)
failed=0

measure() { # NAME SECONDS COMMAND...: an end of one does not end the others
  local name=$1 limit=$2
  shift 2
  echo "== $name" >&2
  timeout "$limit" "$@" >"$out/$name.json" 2>"$out/$name.log" || { failed=1; tail -3 "$out/$name.log" >&2; }
}

timeout 240 "$python" -m pytest -q -p no:cacheprovider tests/gpu >"$out/tests.txt" 2>&1 || failed=1
tail -5 "$out/tests.txt"
measure input_path_resnet50_224 120 "$python" benchmarks/input_path.py --backbone resnet50 --bf16 --channels-last \
  --batch-size 128 --images 1100 --workers $((cores > 2 ? cores - 2 : cores)) --steps 40 --lead 8 --repeats 5 --json
measure overheads_convnext_tiny_224 120 "$python" benchmarks/overheads.py --json
measure training_throughput_resnet50_224 180 "$python" benchmarks/training_throughput.py --backbone resnet50 \
  --image-size 224 --batch-size 128 --images 1288 --workers "$cores" --repeats 3 --json "$@"
measure packing_resnet18_96 180 "$python" benchmarks/packing.py --images 2008 --repeats 1 --json
exit $failed
