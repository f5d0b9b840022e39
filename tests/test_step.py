from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxseg.base.config import Optimization
from jaxseg.learn import losses, optimizers
from jaxseg.learn.augment import flips_and_turns
from jaxseg.learn.compiled import (
    KEEP_BARRIERS,
    compile_eval_step,
    compile_predict_step,
    compile_probability_step,
    compile_train_step,
    compiler_options,
)
from jaxseg.learn.losses import IGNORE_INDEX
from jaxseg.learn.metrics import confusion_matrix
from jaxseg.learn.step import loss_fn, normalize, shares, step_key, train_step
from jaxseg.nn import unet as models
from jaxseg.nn.unet import UNet

SEED, STEPS = 3, 24


def rate(step):
    return 0.5 * 0.97**step


def made_up_batch(seed: int, valid: int = 4) -> dict[str, jax.Array]:
    """4 samples of 8x8 of which `valid` count; class 1 is brighter. Padding has an image too, which nothing may see."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(0, 2, (4, 4, 4), np.uint8), np.ones((1, 2, 2), np.uint8))
    image = rng.integers(0, 160, (4, 8, 8, 3), np.uint8) + 90 * mask[..., None]
    mask[valid:] = IGNORE_INDEX
    return {"image": jnp.asarray(image), "mask": jnp.asarray(mask), "valid": jnp.arange(4) < valid}


BATCHES = [made_up_batch(0), made_up_batch(1), made_up_batch(2, valid=1)]


def network() -> tuple[UNet, nnx.Optimizer]:
    net = UNet((4, 8), rngs=nnx.Rngs(0))
    return net, nnx.Optimizer(net, optimizers.sgd(rate), wrt=nnx.Param)


def arrays(module: nnx.Module) -> list[np.ndarray]:
    return [np.array(x) for x in jax.tree.leaves(nnx.state(module))]


def restore(module: nnx.Module, saved: list[np.ndarray]) -> None:
    structure = jax.tree.structure(nnx.state(module))
    nnx.update(module, jax.tree.unflatten(structure, [jnp.array(x) for x in saved]))


@pytest.fixture(scope="module")
def training():
    """One compiled step, run over full and short batches: states before each step and after the last, and records."""
    compilations = []

    def listener(event: str, *_, **__) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    net, optimizer = network()
    step = compile_train_step(net, optimizer, schedule=rate, augment=flips_and_turns, seed=SEED)
    jax.monitoring.register_event_duration_secs_listener(listener)
    states, records, counts = [arrays(net)], [], []
    for i in range(STEPS):
        before = len(compilations)
        records.append(jax.device_get(step(BATCHES[i % 3])))
        counts.append(len(compilations) - before)
        states.append(arrays(net))
    jax.monitoring.unregister_event_duration_listener(listener)
    return {"net": net, "optimizer": optimizer, "step": step, "states": states, "records": records, "compiled": counts}


# Normalization


def test_normalize_is_a_division_by_255_to_the_bit():
    values = np.arange(256, dtype=np.uint8)
    expected = values.astype(np.float32) / np.float32(255)
    for how in (normalize, jax.jit(normalize)):
        found = how(jnp.asarray(values))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_normalize_is_the_same_within_a_larger_program():
    """Where XLA might fuse and contract it otherwise."""
    values = jnp.arange(256, dtype=jnp.uint8)
    found = jax.jit(lambda x: normalize(x) * 2.0 + 0.0)(values)
    np.testing.assert_array_equal(found, np.arange(256, dtype=np.float32) / np.float32(255) * 2)


@pytest.mark.parametrize(("kind", "most"), [("uint16", 65535), ("int16", 32767)])
def test_wider_integers_are_divided_by_their_largest_value_to_the_bit(kind, most):
    info = np.iinfo(kind)
    values = np.arange(info.min, info.max + 1).astype(kind)
    expected = values.astype(np.float32) / np.float32(most)
    np.testing.assert_array_equal(jax.jit(normalize)(values), expected)


def test_floats_are_left_as_they_are():
    values = np.float32([-3.5, 0, 1e-6, 700])
    np.testing.assert_array_equal(normalize(values), values)


def test_a_type_that_no_image_has_is_refused():
    with pytest.raises(ValueError, match="images of type int32; expected uint8, uint16, int16 or floats"):
        normalize(np.zeros((1, 1), np.int32))


def test_mean_and_deviation_are_of_the_scaled_values_channel_by_channel(rng):
    image, mean, std = rng.integers(0, 65536, (2, 3, 4, 2), np.uint16), (0.25, 0.5), (0.1, 2.0)
    expected = (image / 65535 - np.array(mean)[None, None, None]) / np.array(std)[None, None, None]
    found = jax.jit(partial(normalize, mean=mean, std=std))(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalize(image, mean), expected * np.array(std)[None, None, None], atol=1e-6)


# Training


def test_training_reduces_the_loss(training):
    losses = [record["loss"] for record in training["records"]]
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_full_and_short_batches_share_one_program(training):
    assert training["compiled"] == [1] + [0] * (STEPS - 1)


def test_the_learning_rate_reported_is_the_one_the_update_used(training):
    """Of plain SGD, the parameters move by learning rate times gradient, whose norm is reported too."""
    is_parameter = [path[-1] not in ("mean", "var") for path, _ in nnx.to_flat_state(nnx.state(training["net"]))]
    for step, record in enumerate(training["records"]):
        assert record["learning_rate"] == pytest.approx(rate(step), rel=1e-6)
        moves = [
            np.square(b - a).sum(dtype=np.float64)
            for a, b, counts in zip(training["states"][step], training["states"][step + 1], is_parameter)
            if counts
        ]
        assert np.sqrt(np.sum(moves)) == pytest.approx(record["learning_rate"] * record["grad_norm"], rel=1e-4)


def test_the_confusion_matrix_counts_the_pixels_that_count(training):
    for i, record in enumerate(training["records"]):
        labels = np.asarray(BATCHES[i % 3]["mask"])  # flips and turns leave the counts
        np.testing.assert_array_equal(record["confusion"].sum(1), [(labels == 0).sum(), (labels == 1).sum()])
    assert np.trace(training["records"][-3]["confusion"]) > 0.8 * 256  # and what it learned is on the diagonal


def test_loss_and_predictions_are_of_the_batch_as_augmented_by_seed_and_step(training):
    net, _ = network()
    graphdef = nnx.graphdef(net)

    @jax.jit
    def ask(state, batch):
        return loss_fn(nnx.merge(graphdef, state), batch)

    def recorded(step, key):
        restore(net, training["states"][step])
        batch = flips_and_turns(key, BATCHES[step % 3])
        loss, logits = ask(nnx.state(net), batch)
        return float(loss), confusion_matrix(logits.argmax(-1), batch["mask"], 2)

    for step in (0, 1, 7):
        loss, confusion = recorded(step, step_key(SEED, step))
        assert training["records"][step]["loss"] == pytest.approx(loss, rel=1e-5)
        moved = np.abs(training["records"][step]["confusion"] - np.asarray(confusion)).sum()
        assert moved <= 2  # a tie may fall otherwise
        for other in (step_key(SEED, step + 1), step_key(SEED + 1, step)):
            assert training["records"][step]["loss"] != pytest.approx(recorded(step, other)[0], rel=1e-4)


def test_a_run_taken_up_again_goes_on_to_the_same_bits(training):
    """The same compiled step on restored state: nothing depends on what was run before."""
    net, optimizer = training["net"], training["optimizer"]
    restore(net, training["states"][5])
    optimizer.step[...] = jnp.asarray(5, optimizer.step.dtype)
    state = nnx.state(optimizer)
    nnx.update(optimizer, jax.tree.map(lambda x: jnp.full_like(x, 5), state))  # all that plain SGD keeps is its counts
    for i in range(5, 8):
        record = jax.device_get(training["step"](BATCHES[i % 3]))
        for name, value in training["records"][i].items():
            np.testing.assert_array_equal(record[name], value)
    for found, expected in zip(arrays(net), training["states"][8]):
        np.testing.assert_array_equal(found, expected)


def test_keys_of_steps_differ_by_seed_and_by_step():
    keys = [jax.random.key_data(step_key(seed, step)).tolist() for seed in range(4) for step in range(4)]
    assert len({tuple(key) for key in keys}) == 16
    assert jax.random.key_data(jax.jit(step_key, static_argnums=0)(1, 2)).tolist() == keys[4 + 2]


def test_a_padded_short_batch_makes_the_update_of_the_short_batch_alone():
    """In float64, so that what is left is rounding: without `valid` in BatchNorm it is 1e-2."""
    padded = made_up_batch(4, valid=2)
    short = {name: array[:2] for name, array in padded.items()}
    found = []
    with jax.enable_x64(True):
        for batch in (padded, short):
            net = UNet((2, 4), dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
            optimizer = nnx.Optimizer(net, optimizers.sgd(0.5, 0.9, weight_decay=0.1), wrt=nnx.Param)
            step = compile_train_step(net, optimizer, schedule=lambda step: 0.5)
            for _ in range(2):
                record = jax.device_get(step(batch))
            found.append((record, arrays(net)))
    (record, after), (expected_record, expected) = found
    for a, b in zip(after, expected):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, atol=1e-12)
    for name in ("loss", "grad_norm"):
        assert record[name] == pytest.approx(expected_record[name], rel=1e-12)
    np.testing.assert_array_equal(record["confusion"], expected_record["confusion"])


def test_the_loss_asked_for_is_trained_and_its_gradient_clipped():
    loss, limit = partial(losses.tversky, alpha=0.2, beta=0.7), 0.01
    net = UNet((2, 4), rngs=nnx.Rngs(0))
    tx = optax.chain(optimizers.clip_by_global_norm(limit), optimizers.sgd(1.0))
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    ask = nnx.jit(nnx.value_and_grad(partial(loss_fn, loss=loss), has_aux=True))
    (expected, logits), grads = ask(nnx.clone(net), BATCHES[0])
    np.testing.assert_allclose(jax.jit(loss)(logits, BATCHES[0]["mask"]), expected, rtol=1e-5)

    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net, nnx.Param)))
    record = compile_train_step(net, optimizer, schedule=lambda step: 1.0, loss=loss)(BATCHES[0])
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net, nnx.Param)))
    grads = jax.tree.map(np.array, nnx.to_pure_dict(grads))
    norm = np.sqrt(sum(np.square(grad).sum() for grad in jax.tree.leaves(grads)))
    assert float(record["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(record["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert norm > 2 * limit
    for old, new, grad in zip(*map(jax.tree.leaves, (before, after, grads)), strict=True):
        np.testing.assert_allclose(old - new, grad * np.float32(limit / norm), atol=1e-6)


# Evaluation


@pytest.fixture(scope="module")
def eval_step(training):
    return compile_eval_step(training["net"])


@pytest.fixture
def evaluation(training, eval_step):
    """The compiled `eval_step`, its network as after training, and what it says of the first batch."""
    restore(training["net"], training["states"][-1])
    return eval_step, training["net"], jax.device_get(eval_step(BATCHES[0]))


def test_evaluation_takes_any_function_of_logits_and_labels_for_a_loss(training):
    step = compile_eval_step(training["net"], loss=lambda logits, labels: (logits.argmax(-1) == labels).mean())
    found = jax.device_get(step(BATCHES[0]))
    assert found["loss"] == np.trace(found["confusion"]) / found["confusion"].sum()


def test_evaluation_changes_nothing(evaluation):
    step, net, _ = evaluation
    before = arrays(net)
    step(BATCHES[1])
    for found, expected in zip(arrays(net), before):
        np.testing.assert_array_equal(found, expected)
    assert not net.down[0].norm1.use_running_average  # the view is another


def test_evaluation_of_a_sample_does_not_depend_on_its_company(evaluation):
    """As it would with the statistics of the batch: each sample alone, the rest padding, and the mean of the four."""
    step, _, together = evaluation
    alone = []
    for i in range(4):
        valid, image, mask = np.arange(4) == i, np.array(BATCHES[0]["image"]), np.array(BATCHES[0]["mask"])
        image[~valid], mask[~valid] = 7 * i, IGNORE_INDEX
        batch = {"image": image, "mask": mask, "valid": valid}
        alone.append(jax.device_get(step(jax.tree.map(jnp.asarray, batch))))
        np.testing.assert_array_equal(alone[i]["predictions"][i], together["predictions"][i])
    assert np.mean([one["loss"] for one in alone]) == pytest.approx(together["loss"], rel=1e-5)
    np.testing.assert_array_equal(sum(one["confusion"] for one in alone), together["confusion"])


def test_evaluation_counts_its_own_predictions(evaluation):
    _, _, found = evaluation
    labels = np.asarray(BATCHES[0]["mask"])
    assert (found["predictions"].dtype, found["predictions"].shape) == (np.uint8, labels.shape)
    for true in (0, 1):
        for predicted in (0, 1):
            assert found["confusion"][true, predicted] == ((labels == true) & (found["predictions"] == predicted)).sum()
    assert np.trace(found["confusion"]) > 0.8 * labels.size


def test_evaluation_sees_the_weights_as_they_become(training, evaluation):
    step, net, before = evaluation
    training["step"](BATCHES[0])
    assert float(step(BATCHES[0])["loss"]) != before["loss"]
    restore(net, training["states"][-1])
    np.testing.assert_array_equal(step(BATCHES[0])["loss"], before["loss"])


def test_normalization_is_what_it_is_told_in_every_step(training):
    """With a mean and a deviation of one half the network sees other numbers."""
    net, batch = training["net"], BATCHES[0]
    restore(net, training["states"][-1])
    twice = partial(normalize, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    logits = jax.jit(lambda x: models.evaluation(net)(x))(2 * normalize(batch["image"]) - 1)
    found = compile_eval_step(net, normalize=twice)(batch)
    assert float(found["loss"]) == pytest.approx(float(losses.cross_entropy(logits, batch["mask"])), rel=1e-4)
    probabilities = compile_probability_step(net, normalize=twice)(batch["image"])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    classes = compile_predict_step(net, normalize=twice)(batch["image"])
    assert classes.dtype == np.uint8
    assert (np.asarray(classes) != np.asarray(probabilities).argmax(-1)).mean() < 0.01  # ties
    plain = compile_probability_step(net)(batch["image"])
    assert np.abs(plain - probabilities).max() > 1e-3

    copied, (_, optimizer) = nnx.clone(net), network()
    expected, _ = jax.jit(lambda: loss_fn(nnx.clone(net), batch, normalize=twice))()
    step = compile_train_step(copied, optimizer, schedule=rate, normalize=twice)
    assert float(step(batch)["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_probabilities_are_float32_and_sum_to_one(training):
    restore(training["net"], training["states"][-1])  # another test may have given its arrays to a step
    found = np.asarray(compile_probability_step(training["net"])(BATCHES[0]["image"]))
    assert (found.dtype, found.shape) == (np.float32, (4, 8, 8, 2))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


# Accumulation


def uneven_batch(valid: int = 4) -> dict[str, np.ndarray]:
    """Samples in which not as many pixels count."""
    batch = {name: np.array(array) for name, array in made_up_batch(5, valid).items()}
    for i in range(4):
        batch["mask"][i, : 2 * i] = IGNORE_INDEX
    return batch


def one_step(batch, view: bool, **how) -> tuple[dict, list[np.ndarray]]:
    """A step in float64; with `view` BatchNorm uses its running statistics, so that no sample sees another."""
    with jax.enable_x64(True):
        net = UNet((2, 4), dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        net = models.evaluation(net) if view else net
        optimizer = nnx.Optimizer(net, optimizers.sgd(0.5), wrt=nnx.Param)
        record = jax.device_get(compile_train_step(net, optimizer, schedule=lambda step: 0.5, **how)(batch))
        return record, arrays(net)


def test_parts_of_a_batch_make_the_update_of_the_whole():
    """Exactly, where BatchNorm does not tell them apart, also when parts have more or fewer pixels that count."""
    expected_record, expected = one_step(uneven_batch(), view=True)
    for parts in (2, 4):
        record, found = one_step(uneven_batch(), view=True, accumulate=parts)
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=1e-14)
        for name in ("loss", "grad_norm"):
            assert record[name] == pytest.approx(expected_record[name], rel=1e-13)
        np.testing.assert_array_equal(record["confusion"], expected_record["confusion"])


def test_an_empty_part_changes_nothing():
    """The second of two parts has no valid sample: the update is that of the first alone, statistics included."""
    short = uneven_batch(valid=2)
    record, found = one_step(short, view=False, accumulate=2)
    expected_record, expected = one_step({name: array[:2] for name, array in short.items()}, view=False)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-14)
    assert record["loss"] == pytest.approx(expected_record["loss"], rel=1e-13)
    np.testing.assert_array_equal(record["confusion"], expected_record["confusion"])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_without_any_valid_sample_moves_nothing(parts):
    with jax.enable_x64(True):
        start = arrays(UNet((2, 4), dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    record, found = one_step(uneven_batch(valid=0), view=False, accumulate=parts)
    for a, b in zip(found, start):
        np.testing.assert_array_equal(a, b)
    assert (record["loss"], record["grad_norm"]) == (0, 0)


def test_shares_are_of_the_pixels_that_count():
    masks = np.full((4, 1, 2, 3), IGNORE_INDEX, np.uint8)
    masks[0], masks[2, 0, 0, :2] = 0, 1
    np.testing.assert_allclose(shares(jnp.asarray(masks)), [6 / 8, 0, 2 / 8, 0])
    np.testing.assert_array_equal(shares(jnp.full((2, 1, 2, 2), IGNORE_INDEX, jnp.uint8)), [0, 0])


def test_a_batch_that_the_parts_do_not_divide_is_refused():
    net, optimizer = network()
    with pytest.raises(ValueError, match="a batch of 4 cannot be cut into 3 equal parts"):
        compile_train_step(net, optimizer, schedule=rate, accumulate=3)(BATCHES[0])


@pytest.mark.parametrize(
    ("backend", "flags", "names"),
    [
        ("cpu", "", {"xla_disable_hlo_passes"}),
        ("gpu", "", {"xla_gpu_enable_command_buffer", "xla_gpu_graph_min_graph_size"}),
        ("gpu", "--xla_gpu_enable_command_buffer= --xla_gpu_autotune_level=2", {"xla_gpu_graph_min_graph_size"}),
        ("tpu", "", set()),
    ],
)
def test_what_a_step_is_compiled_with_follows_from_the_device_and_is_left_to_xla_flags(
    monkeypatch, backend, flags, names
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert set(compiler_options()) == names


def test_parts_save_memory():
    def temporary(parts: int) -> int:
        net, optimizer = network()
        step = nnx.jit_partial(partial(train_step, schedule=rate, accumulate=parts), net, optimizer, graph=False)
        big = {name: jnp.tile(array, (1, 8, 8, 1)[: array.ndim]) for name, array in BATCHES[0].items()}
        return step.lower(big).lowered.compile(KEEP_BARRIERS).memory_analysis().temp_size_in_bytes

    assert temporary(4) < 0.4 * temporary(1)


# Dropout, averages, a plateau


def test_all_that_is_drawn_follows_from_seed_and_step():
    """Dropout in parts, recomputed: a run taken up at step 2 goes on to the same bits, and no two steps are alike."""
    how = {"schedule": rate, "augment": flips_and_turns, "seed": SEED, "accumulate": 2}
    net = UNet((2, 4), dropout=0.5, remat=True, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optimizers.sgd(0.0), wrt=nnx.Param)
    step = compile_train_step(net, optimizer, **how)
    states, found = [], []
    for _ in range(4):
        states.append((arrays(net), arrays(optimizer)))
        found.append(float(step(BATCHES[0])["loss"]))
    assert len(set(found)) == 4
    restore(net, states[2][0])
    restore(optimizer, states[2][1])
    assert [float(step(BATCHES[0])["loss"]) for _ in range(2)] == found[2:]


@pytest.fixture(scope="module")
def averaging():
    """A compiled step of a run with an average of its weights and a plateau, and evaluation of the average."""
    net = UNet((2, 4), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        net, optimizers.optimizer_from(Optimization(ema=0.5, schedule="plateau"), rate), wrt=nnx.Param
    )
    step = compile_train_step(net, optimizer, schedule=rate)
    return net, optimizer, step, compile_eval_step(optimizers.averaged(net, optimizer))


def test_evaluation_of_the_average_follows_it_without_compiling_again(averaging):
    net, optimizer, step, evaluate = averaging
    compiled, plain, events = compile_eval_step(copied := nnx.clone(net)), compile_eval_step(net), []
    for number in range(3):
        step(BATCHES[number])
        if number == 1:
            jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
        found = float(evaluate(BATCHES[0])["loss"])
        nnx.update(copied, nnx.to_pure_dict(nnx.state(optimizers.averaged(net, optimizer))))
        assert found == float(compiled(BATCHES[0])["loss"])
        assert (found == float(plain(BATCHES[0])["loss"])) == (number == 0)  # the first update is copied
    jax.monitoring.clear_event_listeners()
    assert "/jax/core/compile/backend_compile_duration" not in events


def test_a_rate_scale_set_between_steps_takes_effect_and_is_reported(averaging):
    net, optimizer, step, _ = averaging
    before = int(optimizer.step[...])
    assert float(step(BATCHES[0])["learning_rate"]) == pytest.approx(rate(before))
    optimizers.set_rate_scale(optimizer, 0.1)
    assert float(step(BATCHES[0])["learning_rate"]) == pytest.approx(0.1 * rate(before + 1))
    optimizers.set_rate_scale(optimizer, 0.0)
    start = [np.array(x) for x in jax.tree.leaves(nnx.state(net, nnx.Param))]
    assert float(step(BATCHES[0])["learning_rate"]) == 0
    for found, expected in zip(jax.tree.leaves(nnx.state(net, nnx.Param)), start, strict=True):
        np.testing.assert_array_equal(found, expected)
