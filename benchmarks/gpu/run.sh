#!/usr/bin/env bash
# What runs on a GPU: the tests marked `gpu`, a fit of 1,000,000 cells x 2,000 genes x 753 contexts that are made on the device, and a small
# fit on the CPU and the GPU side by side. Nine minutes at most.
#
#   benchmarks/gpu/run.sh [FOLDER]          results to FOLDER (default: gpu_output)
#   benchmarks/gpu/run.sh --cpu [FOLDER]    the same lines on the CPU, at a hundredth of the size
#
# PYTHON names the interpreter (default: python); SLOWER multiplies the limits of time, for a machine that has other work (default: 1).
set -uo pipefail
device=gpu
if [ "${1:-}" = --cpu ]; then device=cpu; shift; fi
out=$(realpath -m "${1:-gpu_output}")
cd "$(dirname "$0")/../.."
mkdir -p "$out"
python=${PYTHON:-python}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
slower=${SLOWER:-1}
failed=0

step() { # name, seconds, command ...
    local name=$1 seconds=$2 start=$SECONDS; shift 2
    timeout --kill-after=10 "$((seconds * slower))" "$@" >"$out/$name.log" 2>&1
    local status=$?
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >>"$out/steps.tsv"
    if [ $status -ne 0 ]; then failed=1; tail -n 20 "$out/$name.log"; fi
}

printf 'step\tstatus\tseconds\n' >"$out/steps.tsv"
# without a GPU all of these skip, which is success too
step tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/model/test_gpu.py tests/nn
step large 330 "$python" benchmarks/gpu/large.py --device "$device" --out "$out/large.json"
step compare 80 "$python" benchmarks/gpu/compare.py --device "$device" --out "$out/compare.json"
cat "$out/steps.tsv"
exit $failed
