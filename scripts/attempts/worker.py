"""A process that runs one side: `python -m attempts.worker SPEC`. Reads a request a line, answers a line of JSON.

First it says what it compiled. Then {"run": n} is answered with the seconds that n steps took, and {"profile": n} with
milliseconds of n steps by kind of operation. The end of its input is its end.
"""

import json
import math
import re
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from profile_step import profile
from traces.operations import CONTAINER, MOVES, arrays, operations, parse
from traces.recording import record

from attempts import drives, rewrites
from attempts.spec import Spec, loads
from jaxseg.base.config import Optimization
from jaxseg.learn import losses, optimizers, schedules
from jaxseg.learn.compiled import compile_train_step, compiler_options
from jaxseg.nn.unet import UNet

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
BATCHES = 4
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
"""Of an element; of all other types 4."""
PEAK, BANDWIDTH = 790e12, 4.3e12
"""FLOP/s in bfloat16 and bytes/s of an H200, as measured on one."""


def main() -> None:
    spec = loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints must not be taken for an answer

    def answer(told: dict) -> None:
        print(json.dumps(told), file=answers, flush=True)

    if spec.target:
        answer(compiled_for(spec))
        return
    began = time.perf_counter()
    compiled, run = prepared(spec)
    found = {"compile_s": time.perf_counter() - began} | reckoned(compiled)
    found["losses"] = [run(1), run(2)]
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    answer(found | {"device": device.device_kind, "peak_mib": memory.get("peak_bytes_in_use", 0) / 2**20})
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            began = time.perf_counter()
            run(request["run"])
            answer({"seconds": time.perf_counter() - began})
        else:
            steps = request["profile"]
            entries, kinds = profile(record(partial(run, steps)), operations(compiled.as_text()), steps)
            longest = [(e.name, e.kind, e.ms, e.operation.shapes if e.operation else "") for e in entries[:20]]
            answer({"kinds": kinds, "longest": longest})


def random_batches(spec: Spec) -> list[dict[str, np.ndarray]]:
    rng, shape = np.random.default_rng(0), (spec.batch, spec.side, spec.side)
    valid = np.ones(spec.batch, bool)
    return [
        {
            "image": rng.integers(0, 256, (*shape, 3), np.uint8),
            "mask": rng.integers(0, 2, shape, np.uint8),
            "valid": valid,
        }
        for _ in range(BATCHES)
    ]


def start(spec: Spec) -> tuple[UNet, nnx.Optimizer]:
    net = UNet(spec.widths, conv_bias=spec.conv_bias, remat=spec.remat, dtype=DTYPES[spec.precision], rngs=nnx.Rngs(0))
    return net, nnx.Optimizer(net, optimizers.optimizer_from(Optimization(), schedules.constant(1e-3)), wrt=nnx.Param)


def prepared(spec: Spec) -> tuple[jax.stages.Compiled, drives.Run]:
    """The compiled step, and what runs it."""
    batches = random_batches(spec)
    with rewrites.applied(spec.rewrites):
        net, optimizer = start(spec)
        how = {"schedule": schedules.constant(1e-3), "loss": losses.cross_entropy}  # as it is now
        if spec.drive == "scanned":
            return drives.scanned(net, optimizer, batches, **how)
        like = drives.floats(batches[0]) if spec.drive == "floats sent" else batches[0]
        step = compile_train_step(net, optimizer, **how)
        compiled = step.lower(like).compile(compiler_options())
    return compiled, drives.DRIVES[spec.drive](compiled, batches)


def compiled_for(spec: Spec) -> dict:
    """What the step becomes on the GPU that the text file `spec.target` describes (a GpuTargetConfigProto of XLA's, of
    which its sources have one for every common GPU). Needs JAX's plugin for CUDA, but no GPU.
    """
    from jax.experimental import topologies

    described = Path(spec.target).read_text(encoding="utf-8")
    device = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=described).devices[0]
    where = jax.sharding.SingleDeviceSharding(device)

    def there(x) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    jax.default_backend = lambda: "gpu"  # what jaxseg asks when it chooses between forms
    options = {"xla_gpu_autotune_level": 0} | dict(flag.removeprefix("--").split("=", 1) for flag in spec.flags.split())
    with rewrites.applied(spec.rewrites):
        net, optimizer = jax.tree.map(there, nnx.eval_shape(lambda: start(spec)))
        step = compile_train_step(net, optimizer, schedule=schedules.constant(1e-3), loss=losses.cross_entropy)
        began = time.perf_counter()
        compiled = step.trace(jax.tree.map(there, random_batches(spec)[0])).lower().compile(options)
    return {"compile_s": time.perf_counter() - began, "device": described_name(described)} | reckoned(compiled)


def described_name(described: str) -> str:
    found = re.search(r'device_description_str: "([^"]*)"', described)
    return found[1] if found else "described GPU"


def reckoned(compiled: jax.stages.Compiled) -> dict:
    """Of a compiled step: kernels, bytes that they read and write, and the least time that an H200 takes for each of
    them by bytes or by operations, added up. What a kernel leaves unread of its arguments counts as read.
    """
    text = compiled.as_text()
    known, computations = operations(text), parse(text)
    entry = computations[re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1]]
    kernels = [i for i in entry if known[i.name].kind != CONTAINER and i.opcode not in MOVES - {"copy", "transpose"}]
    moved = [sum(map(size_in_bytes, (i.type, *i.operands))) for i in kernels]
    times = [max(n / BANDWIDTH, known[i.name].flops / PEAK) for n, i in zip(moved, kernels)]
    memory = compiled.memory_analysis()
    return {
        "kernels": len(kernels),
        "gigabytes": sum(moved) / 1e9,
        "bound_ms": sum(times) * 1e3,
        "temporary_mib": memory.temp_size_in_bytes / 2**20,
        "arguments_mib": memory.argument_size_in_bytes / 2**20,
    }


def size_in_bytes(kind: str) -> int:
    """Of all arrays in a type of HLO text."""
    return sum(BYTES.get(dtype, 4) * math.prod(sizes) for dtype, sizes in arrays(kind))


if __name__ == "__main__":
    main()
