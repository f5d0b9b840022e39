"""Scores a run on images with masks: the body of `jaxseg.evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxseg.base import cli, config, extra, terminal
from jaxseg.base.config import Config, Data, flag
from jaxseg.base.errors import DataError, UserError
from jaxseg.base.options import Evaluation, loading
from jaxseg.base.terminal import command, console
from jaxseg.data.find.folders import Split, find_pairs, find_split
from jaxseg.data.find.layouts import recognize, recognize_test
from jaxseg.data.find.listing import Pair
from jaxseg.data.made.fields import given_or_made_up
from jaxseg.data.read.samples import Reading
from jaxseg.devices.processes import devices_of, gathered, once, share_of, tell_devices
from jaxseg.devices.watch import together
from jaxseg.inference import results
from jaxseg.inference.ahead import predict_ahead
from jaxseg.inference.predictor import Predictor, load
from jaxseg.inference.progress import ImageBar
from jaxseg.inference.scores import Scores, open_pair
from jaxseg.runs.record import read_split

WHERE = {
    "data", "images", "masks", "val_images", "val_masks", "image_suffix", "mask_suffix", "train_list", "val_list",
    "validation", "group_by", "unpaired",
}  # fmt: skip
"""Settings of `Data` that select files. All others are taken from the run."""

SCENE = ("class_field", "layer", "aoi", "instances", "watershed", "min_area")
"""Options for scenes with coordinates."""


def evaluate(options: Evaluation) -> Path:
    """Scores all images, writes the results and returns their folder.

    Each of several processes scores its share of the images, and the first one writes. Raises UserError for invalid
    options or existing results, and DataError listing all pairs that cannot be scored. Then nothing is written.
    """
    with together("nothing was written"):
        if options.folder is not None and options.folder.is_file():
            once(lambda: extra.require("geo", f"{options.folder}: scoring a scene"))
            from jaxseg.inference.evaluate_scene import evaluate_scene

            return evaluate_scene(options)
        return evaluate_images(options)


def evaluate_images(options: Evaluation) -> Path:
    """Does `evaluate` for images with masks."""
    out, split, pairs = once(lambda: prepare(options))
    devices = devices_of(options.machine.devices)
    predictor = load(options.run, **loading(options), devices=devices.here)
    names = predictor.reading.labels.names
    terminal.greet()
    tell_devices(devices)
    console.print(f"{len(pairs)} images with masks ({split}), classes {', '.join(names)}")
    scores = score(pairs, predictor.reading, predictor, options.worst)
    about = {"run": options.run.as_posix(), "checkpoint": predictor.checkpoint, "split": split}
    about |= {"tile": options.tile, "overlap": options.overlap, "tta": options.tta}
    once(lambda: results.write(out, scores, about))
    results.tell(scores, f"{split}, {predictor.checkpoint} checkpoint")
    results.tell_files(out)
    return out


def prepare(options: Evaluation) -> tuple[Path, str, list[Pair]]:
    """Returns the folder for the results, the name of the split, and its pairs. Raises as `evaluate` does."""
    options = check(options)
    saved = config.load(options.run)
    own = is_own(options.data, saved.data)
    split = options.split or ("validation" if own else "all")
    name = place(options.data).resolve().name if not own else "test" if split == "test" else ""
    out = results.place(options, name)
    if split == "test":
        return out, split, test_pairs(saved.data if own else options.data)
    return out, split, own_pairs(options, saved, split) if own else other_pairs(options, saved.run.seed, split)


def check(options: Evaluation) -> Evaluation:
    """Returns the options with FOLDER moved to --data. Raises UserError naming all invalid options."""
    data, wrong = Data(**vars(options.data)), []
    if objects := changed_options(options, SCENE):
        wrong.append(f"{', '.join(objects)}: only for a SCENE with --labels")
    if options.folder is not None:
        if data.data not in (None, options.folder):
            wrong.append(f"{options.folder} and --data {data.data}: give one of them, not both")
        data = dataclasses.replace(data, data=options.folder)
    changed = [f.name for f in dataclasses.fields(Data) if getattr(data, f.name) != f.default]
    if fixed := [flag(name) for name in changed if name not in WHERE]:
        wrong.append(f"{', '.join(fixed)}: how files are read is the run's; leave it out")
    if changed and data.data is None and data.images is None:
        wrong.append(f"{', '.join(map(flag, changed))}: for which data? Give a FOLDER, or --images and --masks")
    if options.worst < 0:
        wrong.append(f"--worst is {options.worst}; expected 0 or more")
    if wrong:
        raise UserError("\n".join(wrong))
    cli.check(Config(data=data))
    return dataclasses.replace(options, data=data, folder=None)


def changed_options(options: Evaluation, names: Sequence[str]) -> list[str]:
    """Returns the flags, of the options of these names, that are not at their default."""
    fields = {field.name: field.default for field in dataclasses.fields(Evaluation)}
    return [flag(name) for name in names if getattr(options, name) != fields[name]]


def place(data: Data) -> Path:
    """Returns the folder of the images: --data or --images."""
    return data.data if data.data is not None else data.images


def is_own(asked: Data, saved: Data) -> bool:
    """True if no data were given, or the folder that the run was trained on and no other setting."""
    if asked == Data():
        return True
    same = saved.data is not None and asked == Data(data=asked.data)
    return same and asked.data.resolve() == saved.data.resolve()


def own_pairs(options: Evaluation, saved: Config, split: str) -> list[Pair]:
    """Returns the pairs that the run's split.json names.

    - `options`: checked options
    - `saved`: settings of the run
    - `split`: "training", "validation" or "all"

    Raises UserError when split.json cannot be read, DataError when images are missing.
    """
    path = options.run / "split.json"
    parts = read_split(path, "give the FOLDER to evaluate on")
    try:
        found = find_split(given_or_made_up(saved.data), saved.run.seed, all_train=saved.run.overfit > 0)
    except DataError as error:
        advice = f"These are the run's own data. If they lie elsewhere now, give their FOLDER.\n{error.advice}"
        raise DataError(error.headline, error.problems, advice) from None
    sides = {
        "training": dict(zip(found.training_names, found.training)),
        "validation": dict(zip(found.validation_names, found.validation)),
    }
    pairs, gone = {}, []
    for part in ("training", "validation") if split == "all" else (split,):
        known = sides["training"] | sides["validation"] | sides[part]  # --overfit validates on training images
        gone += [f"{name}: of {part}, is missing" for name in parts[part] if name not in known]
        pairs |= {known[name]: None for name in parts[part] if name in known}
    if gone:
        headline = f"{len(gone)} images of {path} are missing:"
        raise DataError(headline, gone, "Restore them, or give a FOLDER to evaluate on the images that are there.")
    return list(pairs)


def test_pairs(data: Data) -> list[Pair]:
    """Returns the pairs of the test folders that go with the layout of `data`, such as test/ and Ltest/.

    Raises UserError when there are none.
    """
    found = recognize_test(data.data) if data.data is not None and data.data.is_dir() else None
    if found is None:
        where = data.data or data.images or "the run's data"
        raise UserError(
            f"--split test: no test images with masks in {where}; expected folders such as test/ Ltest/, "
            "test/images/ test/masks/ or test/ testannot/. Name others with --images and --masks."
        )
    return find_pairs(*found.training, dataclasses.replace(data, mask_suffix=data.mask_suffix or found.mask_suffix))


def other_pairs(options: Evaluation, seed: int, split: str) -> list[Pair]:
    """Returns the pairs of data that are not the run's own.

    - `options`: checked options
    - `seed`: seed of the split
    - `split`: "training", "validation" or "all"

    Raises DataError when there are no pairs, with the command that predicts images without masks.
    """
    data = options.data
    try:
        if split == "all":
            return all_pairs(data, seed)
        return list(getattr(find_split(data, seed), split))
    except DataError as error:
        if not place(data).exists():
            raise
        predict = command("jaxseg.predict", options.run, place(data), "-o", "OUT")
        advice = f"{error.advice}\nImages without masks cannot be scored, but predicted:\n  {predict}"
        raise DataError(error.headline, error.problems, advice.strip()) from None


def all_pairs(data: Data, seed: int) -> list[Pair]:
    """Returns the pairs of training and validation together. Without a split in the data, one pair is enough.

    Raises DataError when there are no pairs.
    """
    found = recognize(data.data) if data.data is not None else None
    divided = data.val_images or data.train_list or (found and (found.validation or found.lists))
    if divided:
        split = find_split(data, seed)
        return [*split.training, *split.validation]
    images, masks = found.training if found else (data.images, data.masks)
    if found and data.mask_suffix is None:
        data = dataclasses.replace(data, mask_suffix=found.mask_suffix)
    return find_pairs(images, masks, data)


def score(pairs: Sequence[Pair], reading: Reading, predictor: Predictor, worst: int) -> Scores:
    """Scores all pairs. Each of several processes scores its share, and gets the scores of all.

    - `pairs`: files of image and mask
    - `reading`: how the run reads files
    - `predictor`: network
    - `worst`: number of images to keep for worst.png

    Raises DataError listing all pairs that cannot be scored. After the first one the others are only read.
    """
    names = Split(tuple(pairs), (), "").training_names
    parts = gathered(score_share([*zip(names, pairs, strict=True)], reading, predictor, worst))

    def total() -> Scores:
        scores, problems = Scores(reading.labels, worst), []
        for part, found in parts:
            scores.include(part)
            problems += found
        if problems:
            listed = [what for _, what in sorted(problems, key=lambda found: found[0])]
            advice = "Channels and classes are the run's. Fix the files or remove them. Nothing was written."
            raise DataError(f"{len(listed)} problems in {len(pairs)} pairs of image and mask:", listed, advice)
        return scores

    return once(total)


def score_share(
    named: Sequence[tuple[str, Pair]], reading: Reading, predictor: Predictor, worst: int
) -> tuple[Scores, list[tuple[int, str]]]:
    """Scores this process's share of the pairs; arguments as in `score`, with names.

    Returns their scores, and the faults that were found, each with the number of its pair.
    """
    mine = share_of(len(named))
    scores, problems = Scores(reading.labels, worst), []

    def read(number: int) -> tuple:
        return open_pair(named[number][1], reading)

    with ImageBar(len(mine)) as bar:
        for number, opened, bands in predict_ahead(mine, read, predictor):
            name, pair = named[number]
            try:
                image, has_data, mask = opened.result()
                bar.start(pair.image, mask.size)
                scores.add(name, image, has_data, mask, bands, bar)
            except DataError as error:
                problems += [(number, what) for what in error.problems]
                break
            finally:
                bar.next()
        for number in mine[len(scores.images) + 1 :]:  # there are some if one had a fault
            try:
                read(number)
            except DataError as error:
                problems += [(number, what) for what in error.problems]
            bar.next()
    return scores, problems
