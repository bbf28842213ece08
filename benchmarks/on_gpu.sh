#!/usr/bin/env bash
# What can be measured on one GPU within ten minutes: tests/gpu, then the benchmarks with an aim for a GPU, their results
# as JSON in a folder. A benchmark that runs into its limit leaves its log, and the others go on.
#
#   benchmarks/on_gpu.sh FOLDER [--peer NAME=PYTHON[:CHECKOUT] ...]
#
# PYTHON=/path/to/python if not the first one found; every side of a peer holds a ResNet-50 with its gradients and
# activations on the GPU, so two peers are enough for 80 GB. Memory of processes, stacked seeds and DDP are not in here.
set -uo pipefail
mkdir -p "${1:?a folder for the results}"
out=$(cd "$1" && pwd)
shift
python=$(command -v "${PYTHON:-python}")
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "no CUDA device here" >&2; exit 2; }
cores=$(nproc)
failed=0

measure() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  echo "== $name" >&2
  timeout -k 10 "$limit" "$@" >"$out/$name.json" 2>"$out/$name.log" || { failed=1; tail -3 "$out/$name.log" >&2; }
}

timeout -k 10 150 "$python" -m pytest -q -p no:cacheprovider tests/gpu >"$out/tests.txt" 2>&1 || failed=1
tail -5 "$out/tests.txt"
measure input_path_resnet50_224 110 "$python" benchmarks/input_path.py --backbone resnet50 --bf16 --channels-last \
  --batch-size 128 --images 1100 --workers $((cores > 2 ? cores - 2 : cores)) --steps 20 --lead 5 --repeats 5 --json
measure overheads_convnext_tiny_224 70 "$python" benchmarks/overheads.py --json
measure packing_resnet18_96 150 "$python" benchmarks/packing.py --images 1008 --jobs 1 4 --repeats 3 --json
measure training_throughput_resnet50_224 110 "$python" benchmarks/training_throughput.py --backbone resnet50 \
  --image-size 224 --batch-size 64 --images 648 --workers "$cores" --repeats 3 --json "$@"
exit $failed
