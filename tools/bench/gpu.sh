#!/bin/bash
# What nobody has seen here yet: vita_ref on a graphics card. Eight minutes on one card, from any folder:
#
#     bash tools/bench/gpu.sh [cuda|mps] [FOLDER FOR RANDOM MODELS, 9 GB]
#
# Golden cases on the card, greedy tokens against the processor, decode and prefill rates beside transformers on the
# same card (if it is installed), and a VITA-1.5 of real size with random int4 weights. gpu.py says what each step does.
set -eu
cd "$(dirname "$0")/../.."
device=${1:-cuda} work=${2:-build/bench}
export PYTHONPATH=$PWD
timeout 60 python -m tools.bench.gpu golden "$device"
timeout 60 python -m tools.bench.gpu tokens "$device"
[ -d "$work/qwen2-0.5b" ] || timeout 60 python tools/make_checkpoint.py "$work/qwen2-0.5b" --preset qwen2-0.5b
timeout 120 python -m tools.bench.gpu rates "$device" "$work/qwen2-0.5b"
[ -d "$work/vita-int4" ] || timeout 120 python tools/make_checkpoint.py "$work/vita-int4" --preset vita-1.5 --quantize int4
timeout 120 python -m tools.bench.gpu size "$device" "$work/vita-int4"
