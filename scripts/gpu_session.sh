#!/usr/bin/env bash
# What to run where there is a GPU for a quarter of an hour: two parts, fourteen minutes together.
#
#     [FULL=1] scripts/gpu_session.sh parity|benchmark|all
#
# FULL: the parity suite in its full form too, six minutes more.
# Writes to $OUT, or to gpu-session/ if that is not set. The benchmark writes as it goes, the parity suite at
# its end. Needs jax and PyTorch with CUDA.
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
    minutes 4 python scripts/benchmark.py "${how[@]}" --encoders resnet34 --batches 16 --out "$out/benchmark-encoder"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python -c 'import jax; print("jax", jax.__version__, jax.devices())'
case ${1:-all} in
parity | benchmark) "$1" 2>&1 | tee "$out/$1.log" ;;
all) for part in parity benchmark; do "$part" 2>&1 | tee "$out/$part.log"; done ;;
*) echo "expected parity, benchmark or all; found $1" >&2 && exit 2 ;;
esac
