#!/bin/sh
# Measures in one call, in under ten minutes, all that needs a GPU: the ops' tests on it, alone and under compute-sanitizer, GB/s
# of each op, a training's images a second, its idle time and memory, and a short relay with its matrix.
#
#     benchmarks/on_gpu.sh [FOLDER]        FOLDER, or $OUT, or benchmarks/results/gpu gets the records and summary.{json,md}
#
# No network is needed: Python with torch 2.11 or later, and what benchmarks/on_gpu.txt lists, installed or as wheels in the folder
# wheels (or $WHEELS); where something is missing, the first message says what, and how to carry it. PYTHON=... chooses the
# interpreter, RELAY_COMMIT=... names the commit where this is no git checkout. Without a GPU it is a rehearsal at toy sizes.
set -eu
cd "$(dirname "$0")/.."
out=${1:-${OUT:-benchmarks/results/gpu}}
python=${PYTHON:-python3}
wheels=${WHEELS:-wheels}

if [ -d "$wheels" ]; then # wheels are archives: unpacked they can be imported
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    for wheel in "$wheels"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$unpacked"
    done
    PYTHONPATH=$unpacked${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
fi
"$python" benchmarks/needs.py benchmarks/on_gpu.txt

toy=
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU here: a rehearsal at toy sizes, its figures mean nothing" >&2
    toy=--toy
fi
"$python" -m benchmarks.series --steps benchmarks/gpu.txt --out "$out" --within 570 $toy
