import math
import os

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from jaxseg.base.config import Config, Model, Optimization  # noqa: E402
from parity.reference import training  # noqa: E402
from parity.reference.dataset import TileDataset, loader, to_tensor  # noqa: E402
from parity.reference.initialization import init_weights  # noqa: E402
from parity.reference.scheduler import WarmupCosineScheduler, textbook_warmup_cosine  # noqa: E402
from parity.reference.unet import UNet, Up  # noqa: E402

MILESIAL = (64, 128, 256, 512, 1024)


@pytest.fixture(autouse=True)
def seeded_and_single_threaded():
    """Seeds torch and uses one thread: threads make small tensors a hundred times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def write_tiles(root, count, size=32, seed=0):
    """A folder in the article's layout with `count` training and 2 validation tiles; bright pixels are the class."""
    rng = np.random.default_rng(seed)
    for images, masks, n in (("train", "Ltrain", count), ("val", "Lval", 2)):
        (root / images).mkdir(parents=True)
        (root / masks).mkdir()
        for i in range(n):
            mask = np.kron(rng.integers(0, 2, (size // 8, size // 8), np.uint8), np.ones((8, 8), np.uint8))
            image = rng.integers(0, 90, (size, size, 3), np.uint8) + mask[..., None] * 160
            assert cv2.imwrite(str(root / images / f"tile{i}.png"), image)
            assert cv2.imwrite(str(root / masks / f"tile{i}_mask.png"), mask * 255)
    return root


# Dataset


def test_dataset_images_stay_bgr_and_are_divided_by_255(tmp_path):
    root = write_tiles(tmp_path, 1)
    image, mask = TileDataset(root / "train", root / "Ltrain")[0]
    pixels = cv2.imread(str(root / "train" / "tile0.png"))
    assert (image.dtype, tuple(image.shape), mask.dtype) == (torch.float32, (3, 32, 32), torch.int64)
    np.testing.assert_array_equal(image.numpy(), pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_to_tensor_equals_true_division_for_every_byte():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_tensor(every).numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))


def test_dataset_masks_are_1_only_at_gray_255(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    # white, almost white, two with one channel below 255 (gray 255 by rounding, and 254), colors, black
    colors = [
        [255, 255, 255],
        [254, 254, 254],
        [254, 255, 255],
        [255, 254, 255],
        [0, 0, 255],
        [128, 128, 128],
        [0, 0, 0],
    ]
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((1, 7, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "masks" / "a_mask.png"), np.array([colors], np.uint8))
    _, mask = TileDataset(tmp_path / "images", tmp_path / "masks")[0]
    assert mask.tolist() == [[1, 0, 1, 0, 0, 0, 0]]


def test_dataset_sorts_tiles_and_finds_masks_by_the_name_before_the_first_dot(tmp_path):
    root = write_tiles(tmp_path, 3)
    os.rename(root / "train" / "tile0.png", root / "train" / "tile0.2024.png")
    dataset = TileDataset(root / "train", root / "Ltrain")
    assert dataset.names == ["tile0.2024.png", "tile1.png", "tile2.png"]
    np.testing.assert_array_equal(
        dataset[0][1].numpy() * 255, cv2.imread(str(root / "Ltrain" / "tile0_mask.png"), cv2.IMREAD_GRAYSCALE)
    )


def test_missing_mask_is_named_in_the_error(tmp_path):
    root = write_tiles(tmp_path, 1)
    (root / "Ltrain" / "tile0_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"tile0_mask\.png"):
        TileDataset(root / "train", root / "Ltrain")[0]


def test_loader_keeps_the_short_last_batch_and_shuffles():
    data = [(torch.tensor(i), torch.tensor(-i)) for i in range(12)]
    batches = [images for images, _ in loader(data)]
    assert [len(batch) for batch in batches] == [5, 5, 2]
    order = torch.cat(batches).tolist()
    assert sorted(order) == list(range(12))
    assert order != list(range(12))


def test_loader_follows_a_given_order():
    data = [(torch.tensor(i), torch.tensor(-i)) for i in range(12)]
    order = np.random.default_rng(0).permutation(12)
    images, masks = (torch.cat(part) for part in zip(*loader(data, 4, order), strict=True))
    assert images.tolist() == order.tolist()
    assert masks.tolist() == (-order).tolist()


# Initial weights


def test_init_weights_sets_convolutions_to_kaiming_fan_out_and_norms_to_1_and_0():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(4, 64, 3)), nn.BatchNorm2d(64)))
    norm = model[0][1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    bias = model[0][0][0].bias.detach().clone()
    model.apply(init_weights)
    weight = model[0][0][0].weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.06)  # fan_in would be 4 times larger
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()
    assert torch.equal(model[0][0][0].bias, bias)


def test_init_weights_leaves_transposed_convolutions_and_subclasses_unchanged():
    class Other(nn.Conv2d):
        pass

    for layer in (nn.ConvTranspose2d(8, 4, 2, 2), Other(8, 4, 3), nn.Linear(3, 3)):
        before = [parameter.detach().clone() for parameter in layer.parameters()]
        init_weights(layer)
        assert all(map(torch.equal, before, layer.parameters()))


# Learning rate


def test_article_scheduler_is_a_running_product_of_cosines():
    scheduler = WarmupCosineScheduler(1e-2)
    rates = np.array([scheduler(epoch) for epoch in range(45)])
    factors = (1 + np.cos(np.pi * np.arange(36) / 35)) / 2
    warm_up = 1e-9 + (1e-2 - 1e-9) * np.arange(5) / 5
    expected = np.concatenate([warm_up, 1e-9 + (1e-2 - 1e-9) * np.cumprod(factors), np.full(4, 1e-9)])
    np.testing.assert_allclose(rates, expected, rtol=1e-13)
    # the first epochs and some others, to five digits
    known = {0: 1e-9, 4: 8.0e-3, 5: 1e-2, 6: 9.9799e-3, 9: 9.4114e-3, 20: 7.2028e-4, 40: 1e-9, 44: 1e-9}
    assert {epoch: rates[epoch] for epoch in known} == pytest.approx(known, rel=1e-4)


def test_article_scheduler_called_twice_lowers_the_rate():
    scheduler = WarmupCosineScheduler(1e-2)
    for epoch in range(9):
        scheduler(epoch)
    assert [scheduler(9), scheduler(9)] == pytest.approx([9.4114e-3, 9.1113e-3], rel=1e-4)


def test_fresh_article_scheduler_at_epoch_20_is_far_too_high():
    assert WarmupCosineScheduler(1e-2)(20) == pytest.approx(6.11e-3, rel=1e-3)


def test_textbook_curve_has_the_right_rates_at_its_corners():
    rates = [textbook_warmup_cosine(epoch, 1e-2) for epoch in (0, 2.5, 5, 22.5, 40, 60)]
    assert rates == pytest.approx([1e-9, 5e-3, 1e-2, 5e-3, 1e-9, 1e-9], rel=1e-6)
    assert textbook_warmup_cosine(0, 1.0, warmup=0) == 1.0


# U-Net


def milesial_names(transposed):
    """Parameter names of milesial's network, from its classes."""
    blocks = ["inc.double_conv", *(f"down{i}.maxpool_conv.1.double_conv" for i in range(1, 5))]
    ups = [f"up{i}.conv.double_conv" for i in range(1, 5)]
    names = [f"{block}.{i}.weight" for block in blocks + ups for i in (0, 1, 3, 4)]
    names += [f"{block}.{i}.bias" for block in blocks + ups for i in (1, 4)]
    names += [f"up{i}.up.{leaf}" for i in range(1, 5) for leaf in ("weight", "bias") if transposed]
    return {*names, "outc.conv.weight", "outc.conv.bias"}


FIRST_UP = {"up1.conv.double_conv.0.weight": (512, 1024, 3, 3)}


@pytest.mark.parametrize(
    ("upsample", "parameters", "shapes"),
    [
        ("transpose", 31_037_698, {**FIRST_UP, "up1.up.weight": (1024, 512, 2, 2)}),
        ("bilinear", 17_263_042, {**FIRST_UP, "up1.conv.double_conv.3.weight": (256, 512, 3, 3)}),
    ],
)
def test_parameter_names_shapes_and_count_equal_milesials(upsample, parameters, shapes):
    with torch.device("meta"):
        model = UNet(3, 2, MILESIAL, upsample, conv_bias=False)
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found.keys() == milesial_names(upsample == "transpose")
    assert sum(map(math.prod, found.values())) == parameters
    assert {name: found[name] for name in shapes} == shapes


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize("widths", [(4, 6), (4, 6, 10), (2, 4, 8, 16, 32)])
@pytest.mark.parametrize("size", [(16, 16), (37, 29)])
def test_logits_have_the_height_and_width_of_the_image(upsample, widths, size):
    model = UNet(4, 3, widths, upsample)
    assert model(torch.rand(2, 4, *size)).shape == (2, 3, *size)


def test_up_pads_right_and_below_and_puts_the_skip_first():
    skip, below = torch.full((1, 1, 3, 5), 2.0), torch.ones(1, 1, 2, 4)
    joined = Up(nn.Identity(), nn.Identity())(below, skip)
    assert torch.equal(joined[:, :1], skip)
    assert joined[0, 1].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


def test_relu_leaves_the_recorded_norm_output_unchanged():
    model = UNet(widths=(4, 8))
    kept = []
    model.inc.double_conv[1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    model(torch.rand(1, 3, 8, 8))
    assert kept[0].min() < 0


@pytest.mark.parametrize("options", [{"widths": (16,)}, {"upsample": "nearest"}])
def test_invalid_unet_options_raise_value_error(options):
    with pytest.raises(ValueError, match="expected two or more widths"):
        UNet(**options)


# Training


def test_training_step_returns_the_loss_before_it_and_descends():
    model = UNet(widths=(4, 8)).apply(init_weights)
    images, masks = torch.rand(2, 3, 8, 8), torch.randint(2, (2, 8, 8))
    chosen = torch.log_softmax(model(images), dim=1).gather(1, masks[:, None])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training.set_learning_rate(optimizer, 0.05)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = [float(training.training_step(model, optimizer, images, masks)) for _ in range(20)]
    assert losses[0] == pytest.approx(-chosen.mean().item(), rel=1e-5)
    assert losses[-1] < losses[0]
    assert not torch.equal(before["outc.conv.bias"], model.outc.conv.bias)


def test_set_learning_rate_reaches_every_parameter_group():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 2.0)]
    optimizer = torch.optim.SGD(groups)
    training.set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_clip_norm_bounds_the_norm_of_all_gradients_together():
    model = UNet(widths=(4, 8)).apply(init_weights)
    images, masks = torch.rand(2, 3, 8, 8), torch.randint(2, (2, 8, 8))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    training.training_step(model, torch.optim.SGD(model.parameters(), lr=1.0), images, masks, clip_norm=1e-2)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(1e-2, rel=1e-3)


def test_confusion_matrix_has_truth_in_rows_and_skips_ignored_pixels():
    masks, predictions = torch.tensor([[0, 0, 1], [1, 255, 0]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert training.confusion_matrix(masks, predictions).tolist() == [[1, 2], [0, 2]]


# A side of a race


def batch_of(count, padded=0, size=16, seed=0):
    """Batch in the pipeline's form, with `padded` samples of padding."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count + padded, size, size, 3), np.uint8)
    mask = (image[..., 0] > 128).astype(np.uint8)
    valid = np.arange(count + padded) < count
    image[~valid], mask[~valid] = 0, 255
    return {"image": image, "mask": mask, "valid": valid}


def reference(steps_per_epoch=10, **optimization):
    recipe = Optimization(**{"schedule": "constant", "learning_rate": 1e-2, **optimization})
    side = training.Reference(Config(model=Model(widths=(4, 8)), optimization=recipe), steps_per_epoch)
    torch.manual_seed(1)
    drawn = UNet(widths=(4, 8)).apply(init_weights).state_dict()
    side.start({name: tensor.numpy() for name, tensor in drawn.items()})
    return side


def weights(side):
    return {name: value.clone() for name, value in side.model.state_dict().items()}


def test_reference_starts_from_copies_of_exactly_the_given_weights():
    side = reference()
    given = {name: tensor.clone().numpy() for name, tensor in weights(side).items()}
    side.step(batch_of(2))
    side.start(given)
    assert all(np.array_equal(value, given[name]) for name, value in weights(side).items())
    before = {name: array.copy() for name, array in given.items()}
    side.step(batch_of(2))
    assert all(np.array_equal(given[name], before[name]) for name in given)
    for wrong in (given | {"other.weight": np.zeros(1)}, {k: v for k, v in given.items() if k != "outc.conv.bias"}):
        with pytest.raises(ValueError, match="weights do not fit"):
            side.start(wrong)


def test_reference_start_resets_optimizer_and_schedule():
    side = reference(optimizer="adam", schedule="warmup_cosine", epochs=4, steps_per_epoch=3)
    given = {name: value.numpy() for name, value in weights(side).items()}
    first = [side.step(batch_of(2, seed=i)) for i in range(5)]
    rates = side.rates
    side.start(given)
    assert [side.step(batch_of(2, seed=i)) for i in range(5)] == first
    assert side.rates == rates


def test_reference_ignores_padding():
    short, padded = reference(), reference()
    assert short.step(batch_of(3)) == padded.step(batch_of(3, padded=2))
    assert all(torch.equal(value, weights(padded)[name]) for name, value in weights(short).items())
    found = padded.evaluate(batch_of(3, padded=2))
    assert found["predictions"].shape == (3, 16, 16)
    assert found["confusion"].sum() == 3 * 16 * 16


def test_reference_evaluation_uses_running_statistics_and_changes_nothing():
    side = reference()
    before, (first, second) = weights(side), (batch_of(3, seed=i) for i in range(2))
    together = {key: np.concatenate([first[key], second[key]]) for key in first}
    predictions = [side.evaluate(batch)["predictions"] for batch in (first, second)]
    np.testing.assert_array_equal(side.evaluate(together)["predictions"], np.concatenate(predictions))
    assert all(torch.equal(value, before[name]) for name, value in weights(side).items())


def test_reference_clips_as_the_recipe_says():
    side = reference(optimizer="sgd", learning_rate=0.1, clip_norm=1e-2)
    before = [parameter.detach().clone() for parameter in side.model.parameters()]
    side.step(batch_of(2))
    moved = torch.cat([(a - b).flatten() for a, b in zip(side.model.parameters(), before)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_reference_trains_in_channels_last_with_the_rates_of_its_schedule():
    side = reference(schedule="article", epochs=8, steps_per_epoch=2, learning_rate=0.1)
    before = [parameter.detach().clone() for parameter in side.model.parameters()]
    losses = [side.step(batch_of(3))]
    moved = [(a - b).abs().max() for a, b in zip(side.model.parameters(), before)]
    assert max(moved) < 1e-6  # the first epoch has the rate 1e-9
    losses += [side.step(batch_of(3)) for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]
    assert side.model.inc.double_conv[0].weight.is_contiguous(memory_format=torch.channels_last)
    scheduler = WarmupCosineScheduler(0.1, warmup_epochs=1, max_epochs=8)
    assert side.rates == [rate for epoch in range(8) for rate in [scheduler(epoch)] * 2]
