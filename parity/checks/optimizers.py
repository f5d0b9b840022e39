"""The optimizers question: does every optimizer take PyTorch's steps and keep PyTorch's buffers, with every option?

There is no network, but three arrays with 196 parameters and made-up gradients: log-normal, normal with zeros, and
near 1e-9, where eps matters. The learning rate changes at each step, up and down, which shows its place before or
after a momentum buffer. Coupled and decoupled weight decay differ from step 2 on.

In float64 the gate is 1e-13, relative, in the l2 norm of each single array, because in the norm of all the small ones
would vanish. Parameters and buffers are compared after steps 1, 2 and 100. A step rounds by 1e-16, and 100 steps by
some 1e-15. The smallest mistake looked for, clipping without its 1e-6, changes gradients by 1e-7.

In float32 the gate is 3: the distance of the movement of 100 steps from PyTorch's in float64, over the largest of
PyTorch's own float32 variants (for-loop and fused). Optax's Adam fails it, because its bias correction cancels.

Not seen: options that jaxseg does not offer (the rows of defaults name them), and how a trainer passes its gradients.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import isfunction, signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxseg.learn import optimizers
from parity.checks import optimizer_state
from parity.judge import compare
from parity.judge.answer import Answer, Settings
from parity.judge.compare import Row

QUESTION = "optimizers"
GATE = 1e-13
STEPS = 100
LOOKS = (1, 2, STEPS)
"""Steps after which both sides are compared."""
RATES = 0.02 + 0.5 * (1 + np.sin(np.arange(STEPS) / 4)) * 0.98 ** np.arange(STEPS)
"""Learning rate of each step, relative to an optimizer's peak."""
CLIPS = (8.0, 1e-9)
"""Largest norms: half of the gradients exceed the first; for the second the 1e-6 in the denominator dominates."""
PYTORCH = {  # counterpart and peak of the learning rate
    "sgd": (torch.optim.SGD, 0.1),
    "adam": (torch.optim.Adam, 0.01),
    "adamw": (torch.optim.AdamW, 0.01),
    "rmsprop": (torch.optim.RMSprop, 0.01),
}
OTHERWISE = {
    "optimizer_from",
    "clip_by_global_norm",
    "average_parameters",
    "averaged",
    "rate_scale",
    "set_rate_scale",
    "for_encoder",
}
"""Functions of jaxseg.learn.optimizers that are not optimizers."""
FOR_SPEED = {"foreach", "fused", "capturable", "differentiable"}
"""Options of PyTorch that do not change results."""

Asked = tuple[str, Mapping[str, float]]
"""Name of an optimizer, and options by jaxseg's names."""
Arrays = dict[str, np.ndarray]

CASES: dict[str, Asked] = {
    "SGD": ("sgd", {}),
    "SGD, momentum and decay": ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD, nesterov and decay": ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adam": ("adam", {}),
    "Adam, decay": ("adam", {"weight_decay": 0.1}),
    "AdamW": ("adamw", {}),
    "AdamW, decay": ("adamw", {"weight_decay": 0.3}),
    "RMSprop": ("rmsprop", {}),
    "RMSprop, momentum and decay": ("rmsprop", {"momentum": 0.9, "weight_decay": 0.1}),
}
MORE_CASES: dict[str, Asked] = {  # left out of a quick run
    "SGD, decay": ("sgd", {"weight_decay": 0.1}),
    "SGD, momentum": ("sgd", {"momentum": 0.9}),
    "SGD, nesterov": ("sgd", {"momentum": 0.8, "nesterov": True}),
    "Adam, betas and eps": ("adam", {"b1": 0.5, "b2": 0.9, "eps": 1e-3}),
    "AdamW, betas and eps": ("adamw", {"b1": 0.5, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.0}),
    "RMSprop, decay and eps": ("rmsprop", {"decay": 0.9, "eps": 1e-5, "weight_decay": 0.1}),
    "RMSprop, momentum": ("rmsprop", {"momentum": 0.9}),
    "RMSprop, milesial's": ("rmsprop", {"momentum": 0.999, "weight_decay": 1e-8}),
}
IN_FLOAT32_WHEN_QUICK = {"Adam, decay"}


def run(settings: Settings) -> Answer:
    """Answers the optimizers question.

    Evidence: {"three_way": {case: {"jaxseg", "pytorch", "apart"}}}: relative l2 distances of the float32 movements of
    jaxseg and of PyTorch from PyTorch's in float64, and from each other.
    """
    start, grads = parameters(settings.seed), gradients(settings.seed)
    clipped = ours_clipped(grads)
    rows, rounding = [unmatched_row(), *map(defaults_row, PYTORCH), clip_row(clipped, grads), edge_row()], {}
    for case, ask in (CASES if settings.quick else CASES | MORE_CASES).items():
        with jax.enable_x64(True):
            found, found_clipped = ours(ask, start, [grads, clipped[CLIPS[0]]], np.float64)
        expected = theirs(ask, start, grads, torch.float64)
        rows += [
            exact_row(f"{case}: step {look}", *(at_step(look, side) for side in (found, expected))) for look in LOOKS
        ]
        expected_clipped = theirs(ask, start, grads, torch.float64, clip_to=CLIPS[0])
        rows.append(exact_row(f"{case}: clipped", found_clipped, expected_clipped))
        if case in IN_FLOAT32_WHEN_QUICK or not settings.quick:
            rounding[case] = three_way(ask, start, grads, expected)
            rows.append(rounding_row(case, rounding[case]))
    rows += optimizer_state.rows(start, grads, RATES, LOOKS, GATE)
    return Answer(QUESTION, tuple(rows), {"three_way": rounding})


def parameters(seed: int) -> Arrays:
    """Initial parameters, float32."""
    rng = np.random.default_rng([seed, 0])
    shapes = {"log-normal": (8, 12), "normal and zero": (60,), "near 1e-9": (40,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(seed: int) -> Arrays:
    """Gradients of all steps, float32 [steps, ...], of changing size: 0 in one step, and tiny in another."""
    rng = np.random.default_rng([seed, 1])
    grads = {
        "log-normal": rng.choice([-0.01, 0.01], (STEPS, 8, 12)) * rng.lognormal(sigma=2, size=(STEPS, 8, 12)),
        "normal and zero": rng.standard_normal((STEPS, 60)) * (np.arange(60) < 40),
        "near 1e-9": 1e-9 * rng.standard_normal((STEPS, 40)),
    }
    size = np.exp(np.cos(np.arange(STEPS) / 3))
    size[STEPS // 3], size[STEPS // 2] = 0, 1e-8
    return {name: (each.T * size).T.astype(np.float32) for name, each in grads.items()}


# Rows -----------------------------------------------------------------------------------------------------------------


def unmatched_row() -> Row:
    """Row that passes if every optimizer of jaxseg and each of its options is in the cases."""
    offered = {
        name
        for name, thing in vars(optimizers).items()
        if isfunction(thing) and name.islower() and name[0] not in "_" and name[:5] != "scale"
    }
    left = sorted(offered - {*PYTORCH, *OTHERWISE})
    for name in PYTORCH:
        tried = {option for case, options in (CASES | MORE_CASES).values() if case == name for option in options}
        left += [f"{name} {option}" for option in defaults(getattr(optimizers, name)) if option not in tried]
    figure = len(left) if offered else float("nan")
    return compare.at_most(QUESTION, "optimizers and options without a counterpart", figure, 0, worst=", ".join(left))


def defaults_row(name: str) -> Row:
    """Row for the number of options whose default differs from PyTorch's."""
    make, _ = PYTORCH[name]
    found, expected = defaults(getattr(optimizers, name)), defaults(make)
    wrong = [f"{key}: {found[key]} against {expected.get(key)}" for key in found if found[key] != expected.get(key)]
    missing = ", ".join(sorted(set(expected) - set(found) - FOR_SPEED))
    note = f"not offered: {missing}"
    return compare.at_most(QUESTION, f"{make.__name__}: defaults", len(wrong), 0, note, "; ".join(wrong))


def defaults(function) -> dict[str, object]:
    """Defaults of all options except the learning rate, by jaxseg's names."""
    named = [p for p in signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = {parameter.name: parameter.default for parameter in named}
    given |= zip(("b1", "b2"), given.pop("betas", ()))
    given |= {"decay": given.pop("alpha")} if "alpha" in given else {}
    return {name: value for name, value in given.items() if name not in ("params", "lr", "learning_rate")}


def clip_row(clipped: Mapping[float, Arrays], grads: Arrays) -> Row:
    """Row for the clipped gradients of every step, whose norms are 0 to 41."""
    found, expected = {}, {}
    for limit, arrays in clipped.items():
        steps = []
        for step in range(STEPS):
            leaves = {name: torch.zeros(each.shape[1:], dtype=torch.float64) for name, each in grads.items()}
            give(leaves, grads, step, limit)
            steps.append({name: leaf.grad.numpy() for name, leaf in leaves.items()})
        found |= {f"{name} to {limit:g}": array for name, array in arrays.items()}
        expected |= {f"{name} to {limit:g}": np.stack([each[name] for each in steps]) for name in grads}
    return exact_row("clip_by_global_norm", found, expected)


def edge_row() -> Row:
    """Row for gradients whose norm is the limit, a little more or less, or 0: clipped as PyTorch clips them.

    PyTorch adds 1e-6 to the norm, so a gradient of exactly the limit is scaled too.
    """
    grads, found, expected = np.array([3.0, -4.0]), {}, {}
    for limit in (5.0, 5.0 + 5e-7, 5.0 + 1e-6, 5.0 + 2e-6, 5.0 - 1e-6, 10.0):
        leaf = torch.zeros(2, dtype=torch.float64)
        leaf.grad = torch.tensor(grads)
        torch.nn.utils.clip_grad_norm_([leaf], limit)
        expected[f"norm 5 to {limit!r}"] = leaf.grad.numpy()
        tx = optimizers.clip_by_global_norm(limit)
        with jax.enable_x64(True):
            found[f"norm 5 to {limit!r}"] = np.asarray(tx.update(jnp.asarray(grads), tx.init(None))[0])
    return exact_row("clip_by_global_norm at the norm", found, expected)


def exact_row(name: str, found: Arrays, expected: Arrays) -> Row:
    """Row in float64 for the worst single array."""
    return compare.close(QUESTION, name, found, expected, GATE, each=True)


def three_way(ask: Asked, start: Arrays, grads: Arrays, expected: Arrays) -> dict[str, float]:
    """Distances of the float32 movements from the one in float64, and from each other."""
    with jax.enable_x64(False):
        (found,) = ours(ask, start, [grads], np.float32)
    variants = [{}, {"fused": True}] if "fused" in signature(PYTORCH[ask[0]][0]).parameters else [{}]
    pytorch = [theirs(ask, start, grads, torch.float32, **variant) for variant in variants]
    jaxseg, exact, *pytorch = (movement(side, start) for side in (found, expected, *pytorch))
    return {
        "jaxseg": compare.relative_l2(jaxseg, exact),
        "pytorch": max(compare.relative_l2(each, exact) for each in pytorch),
        "apart": compare.relative_l2(jaxseg, pytorch[0]),
    }


def movement(looks: Arrays, start: Arrays) -> Arrays:
    """Movement of the parameters from the start to the last step, float64."""
    end = at_step(STEPS, looks)
    return {name: end[f"parameters {name}, step {STEPS}"].astype(np.float64) - start[name] for name in start}


def rounding_row(case: str, distances: Mapping[str, float]) -> Row:
    """Row for the movement of a case in float32."""
    note = f"movement of {STEPS} steps; distance from float64 over PyTorch's own distance from it"
    baselines = {"PyTorch": distances["pytorch"]}
    return compare.envelope(QUESTION, f"{case}: float32", distances["jaxseg"], baselines, note=note)


# Both sides: parameters and buffers as {"parameters log-normal, step 1": ...} -----------------------------------------


def at_step(step: int, looks: Arrays) -> Arrays:
    """Arrays of one step."""
    return {name: array for name, array in looks.items() if name.endswith(f", step {step}")}


def ours(ask: Asked, start: Arrays, grads: Sequence[Arrays], dtype: type) -> list[Arrays]:
    """jaxseg's arrays of one case, for each of the `grads`."""
    name, options = ask

    def follow(start, grads):
        tx = getattr(optimizers, name)(lambda step: PYTORCH[name][1] * jnp.asarray(RATES)[step], **options)

        def step(carry, grads):
            updates, state = tx.update(grads, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), {"parameters": params} | buffers(state)

        return jax.lax.scan(step, (start, tx.init(start)), grads)[1]

    cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), (start, jax.tree.map(lambda *each: np.stack(each), *grads)))
    history = jax.device_get(jax.jit(jax.vmap(follow, (None, 0)))(*cast))
    return [
        {
            f"{part} {name}, step {look}": array[i, look - 1]
            for part, arrays in history.items()
            for name, array in arrays.items()
            for look in LOOKS
        }
        for i in range(len(grads))
    ]


def ours_clipped(grads: Arrays) -> dict[float, Arrays]:
    """jaxseg's clipped gradients of every step, float64, by largest norm."""

    def clip(limit: float, grads):
        tx = optimizers.clip_by_global_norm(limit)
        return tx.update(grads, tx.init(grads))[0]

    with jax.enable_x64(True):
        every = jax.jit(lambda grads: {limit: jax.vmap(partial(clip, limit))(grads) for limit in CLIPS})
        return jax.device_get(every({name: array.astype(np.float64) for name, array in grads.items()}))


def buffers(state: optax.OptState) -> dict[str, optax.Params]:
    """Buffers of an optimizer, by PyTorch's names."""
    kinds = (optax.TraceState, optax.ScaleByAdamState, optax.ScaleByRmsState)
    out = {}
    for part in jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kinds)):
        match part:
            case optax.TraceState():
                out["momentum_buffer"] = part.trace
            case optax.ScaleByAdamState():
                out |= {"exp_avg": part.mu, "exp_avg_sq": part.nu}
            case optax.ScaleByRmsState():
                out["square_avg"] = part.nu
    return out


def theirs(
    ask: Asked, start: Arrays, grads: Arrays, dtype: torch.dtype, clip_to: float | None = None, **variant: bool
) -> Arrays:
    """PyTorch's arrays of one case."""
    make, peak = PYTORCH[ask[0]]
    params = {name: torch.tensor(x, dtype=dtype) for name, x in start.items()}
    optimizer = make(params.values(), lr=0.0, **in_torch(ask[1]), **variant)
    looks = {}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = peak * float(RATES[step])
        give(params, grads, step, clip_to)
        optimizer.step()
        if step + 1 in LOOKS:
            for name, param in params.items():
                for part, tensor in {"parameters": param, **optimizer.state[param]}.items():
                    if tensor is not None and part != "step":
                        looks[f"{part} {name}, step {step + 1}"] = tensor.numpy().copy()
    return looks


def in_torch(options: Mapping[str, float]) -> dict:
    """Options with PyTorch's names."""
    out = dict(options)
    if "b1" in out:
        out["betas"] = out.pop("b1"), out.pop("b2")
    if "decay" in out:
        out["alpha"] = out.pop("decay")
    return out


def give(params: Mapping[str, torch.Tensor], grads: Arrays, step: int, clip_to: float | None) -> None:
    """Sets the gradients of the parameters for a step, and clips them to the norm `clip_to`."""
    for name, param in params.items():
        param.grad = torch.tensor(grads[name][step], dtype=param.dtype)
    if clip_to is not None:
        torch.nn.utils.clip_grad_norm_(params.values(), clip_to)
