#!/usr/bin/env bash
# Measures jaxseg on a GPU that is there for ten minutes; the most important first.
#
#     scripts/gpu_session.sh [parity|step|scene|all]      all, if not given, in at most ten minutes
#     FULL=1 scripts/gpu_session.sh parity                the parity suite in its full form, six minutes
#     TINY=1 scripts/gpu_session.sh                       all of it on a CPU with tiny sizes, to see that it works
#
# Writes to $OUT, or to gpu-session/ if that is not set; $OUT/step/benchmark.json grows with every comparison. A part that
# takes too long is ended, and the next one starts. Needs jax and PyTorch with CUDA; with TINY on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-session}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false   # two frameworks, or two processes, share the GPU
if [ -n "${TINY:-}" ]; then
    export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
else
    export JAX_PLATFORMS=cuda,cpu            # the parity suite computes float64 on the CPU; without CUDA it ends here
fi

within() {  # seconds, command: ended by Ctrl-C when its time is over, killed when that does not help
    local status=0
    timeout --signal=INT --kill-after=8 "$@" || status=$?
    [ "$status" = 0 ] || echo "ended with status $status: ${*:2}"
}

parity() {  # is it right?
    local how=(--only gpu --device gpu --quick) seconds=100
    [ -z "${FULL:-}" ] || how=(--only gpu --device gpu --seeds 2) seconds=360
    [ -z "${TINY:-}" ] || how=(--only precision gpu --quick)
    within "$seconds" python -m parity "${how[@]}" --out "$out/parity"
}

step() {  # is it fast? In turns with torch.compile's fastest mode, with the share of the roofline; batch 16, then 32
    rm -rf "$out"/step*
    local how=(--only step --precisions bf16)
    if [ -n "${TINY:-}" ]; then
        how+=(--quick --batches 2)
        within 120 python scripts/benchmark.py "${how[@]}" --bases 2 --ahead --no-torch-eager --out "$out/step"
        within 100 python scripts/benchmark.py "${how[@]}" --encoders resnet18 --no-torch-compile --out "$out/step-encoder"
    else
        how+=(--bases 64 16 --encoders resnet34 --batches 16 32 --budget 4)
        how+=(--no-torch-eager --torch-modes reduce-overhead --ahead)
        within 370 python scripts/benchmark.py "${how[@]}" --out "$out/step"
    fi
}

scene() {  # prediction of a scene in memory
    local how=(--side 8192 --widths 64 128 256 512 1024)
    [ -z "${TINY:-}" ] || how=(--side 640 --widths 2 4)
    within 60 python scripts/scene_speed.py --array --precision bf16 --rounds 3 "${how[@]}"
}

[ -n "${TINY:-}" ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
python -c 'import jax; print("jax", jax.__version__, jax.devices())'
case ${1:-all} in
parity | step | scene) "$1" 2>&1 | tee "$out/$1.log" ;;
all) for part in parity step scene; do "$part" 2>&1 | tee "$out/$part.log"; done ;;
*) echo "expected parity, step, scene or all; found $1" >&2 && exit 2 ;;
esac
