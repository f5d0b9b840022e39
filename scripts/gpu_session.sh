#!/usr/bin/env bash
# What to run where there is a GPU for a quarter of an hour: three parts, of which the first two take ten minutes together.
#
#     [FULL=1] scripts/gpu_session.sh parity|benchmark|attempts|all
#
# FULL: the parity suite in its full form too, six minutes more.
# Writes to $OUT, or to gpu-session/ if that is not set. The benchmark and the attempts write as they go, and the attempts
# go on where they were cut off; the parity suite writes at its end. Needs jax with CUDA, and for the first two PyTorch
# with CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-session}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export JAX_PLATFORMS=cuda,cpu                # the parity suite computes float64 on the CPU; without CUDA it ends here
export XLA_PYTHON_CLIENT_PREALLOCATE=false   # two frameworks, or two processes, share the GPU
minutes() { timeout --signal=INT --kill-after=10 "$((60 * $1))" "${@:2}" || echo "ended with status $?: ${*:2}"; }

parity() {  # small first, so that a mistake shows at once
    minutes 2 python -m parity --only gpu --device gpu --quick --out "$out/parity-quick"
    if [ -n "${FULL:-}" ]; then
        minutes 6 python -m parity --only gpu --device gpu --seeds 2 --out "$out/parity-full"
    fi
}

benchmark() {  # the aims first: base 64, bfloat16; then a small network
    rm -rf "$out"/benchmark-*
    local how=(--only step --precisions bf16 --ahead --torch-modes default reduce-overhead --budget 5)
    minutes 5 python scripts/benchmark.py "${how[@]}" --bases 64 --batches 16 32 --out "$out/benchmark-large"
    minutes 3 python scripts/benchmark.py "${how[@]}" --bases 16 --batches 5 --out "$out/benchmark-small"
}

attempts() {  # resumes; the first row is a profile
    minutes 6 python scripts/gpu_attempts.py --budget 300 --timeout 200 --out "$out/attempts.json"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python -c 'import jax; print("jax", jax.__version__, jax.devices())'
case ${1:-all} in
parity | benchmark | attempts) "$1" 2>&1 | tee "$out/$1.log" ;;
all) for part in parity benchmark attempts; do "$part" 2>&1 | tee "$out/$part.log"; done ;;
*) echo "expected parity, benchmark, attempts or all; found $1" >&2 && exit 2 ;;
esac
