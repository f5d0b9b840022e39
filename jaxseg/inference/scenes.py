"""Writes the files of an image with coordinates: maps, polygons and objects, all of them or none."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import UserError, problem
from jaxseg.base.options import Evaluation, Prediction
from jaxseg.base.terminal import console
from jaxseg.data.read.masks import ClassMap
from jaxseg.geo import maps as geotiff
from jaxseg.geo import vectors
from jaxseg.geo.instances import AGREEMENT, HALO, separate
from jaxseg.geo.raster import Scene, cache_for, environment
from jaxseg.geo.regions import Regions, find_regions
from jaxseg.geo.sieve import merge_small
from jaxseg.inference import maps
from jaxseg.inference.jobs import Job
from jaxseg.inference.predictor import Raster

Bands = Iterable[tuple[UInt8[np.ndarray, "rows w"], Float[np.ndarray, "rows w k"]]]


def write_scene(
    job: Job,
    scene: Scene,
    image: Raster,
    bands: Bands,
    labels: ClassMap,
    table: Shaped[np.ndarray, "256 ..."] | None,
    options: Prediction,
) -> None:
    """Writes all files of a job. They are made in a folder beside the class map, and moved when all are whole.

    - `job`: paths
    - `scene`: open raster
    - `image`: the scene as the network reads it
    - `bands`: classes and probabilities from top to bottom
    - `labels`: class map of the run
    - `table`: value or color of each class to write instead of class numbers, or None
    - `options`: which files to write, and how

    Raises UserError when a file cannot be written.
    """
    tell(scene, bool(job.vector or job.instances))
    names, ready = labels.names, []
    with _whole_files(job) as made, environment(cache_for(scene, options.tile)):
        classes = made / "classes.tif"
        thin = _write_bands(made, job, scene, bands, labels, table, options)
        if job.overlay:
            maps.write_overlay(made / "overlay.png", image, thin, labels.palette(), names)
            ready.append((made / "overlay.png", job.overlay))
        if job.vector or job.instances:
            regions = regions_of(made / "regions.tif", classes, made / "sure.tif", scene, names, options)
            if job.vector:
                ready += _write_polygons(made, job.vector, scene, regions, names, options.simplify)
            if job.instances:
                numbers = np.where(np.isin(regions.classes, background(names)), 0, np.arange(len(regions) + 1))
                blocks = ((at, numbers[block]) for at, block in regions.blocks())
                geotiff.number_map(made / "instances.tif", scene, blocks)
                ready.append((made / "instances.tif", job.instances))
        if job.probabilities:
            ready.append((_finished(made / "probabilities.tif", options.cog, averaged=True), job.probabilities))
        beside = job.class_map.with_name(job.class_map.name + ".aux.xml")
        if table is None:
            (made / "names.xml").write_bytes(geotiff.categories(names))
            ready.append((made / "names.xml", beside))
        ready.append((_finished(classes if table is None else made / "values.tif", options.cog), job.class_map))
        if table is not None:
            beside.unlink(missing_ok=True)  # of a class map that is replaced
        for file, path in ready:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, path)


def tell(scene: Scene, polygons: bool) -> None:
    """Prints what a scene lacks. Raises DataError if polygons are wanted, and it has ground control points alone."""
    if scene.transform.is_identity:
        if polygons:
            advice = "Warp it first, such as with gdalwarp or rio warp."
            raise problem(scene.path, "has ground control points, but polygons need a transform", advice)
        console.print(f"{scene.path}: has ground control points and no transform, which its maps keep")
    elif scene.crs is None:
        console.print(f"{scene.path}: has no CRS. Its maps keep the transform alone; areas are not in m2.")


def background(names: Sequence[str]) -> tuple[int, ...]:
    """Returns the classes of which no object is made: the one called background."""
    return tuple(number for number, name in enumerate(names) if name == "background")


def regions_of(
    path: Path, classes: Path, sure: Path | None, scene: Scene, names: Sequence[str], options: Prediction | Evaluation
) -> Regions:
    """Finds the regions, or with --instances the objects, of a class map.

    - `path`: file to write for their numbers
    - `classes`, `sure`: class map, and packed probability of each pixel's class
    - `scene`: raster from which the map was made
    - `names`: names of the classes
    - `options`: `min_area`, `instances` and `watershed` count
    """
    how = {}
    if options.instances:
        labeler = separate(options.watershed, background(names))
        how = {"labeler": labeler, "halo": HALO, "agreement": AGREEMENT}
    regions = find_regions(path, classes, scene, sure, **how)
    if not options.min_area:
        return regions
    return merge_small(regions, int(np.ceil(options.min_area / vectors.pixel_area(scene))), not options.instances)


def _write_bands(
    made: Path,
    job: Job,
    scene: Scene,
    bands: Bands,
    labels: ClassMap,
    table: np.ndarray | None,
    options: Prediction,
) -> UInt8[np.ndarray, "h w"] | None:
    """Writes what grows from top to bottom: maps of classes, values and probabilities. Returns an overlay's classes.

    For polygons and objects, sure.tif has the probability of each pixel's class.
    """
    names, step, top, thin = labels.names, maps.kept(scene.shape).step, 0, []
    with ExitStack() as stack:
        to_classes = stack.enter_context(geotiff.class_map(made / "classes.tif", scene, names, labels.palette()))
        to_values = to_probabilities = to_sure = None
        if table is not None:
            to_values = stack.enter_context(geotiff.value_map(made / "values.tif", scene, table))
        if job.probabilities:
            file = geotiff.probability_map(made / "probabilities.tif", scene, names, options.probability_type)
            to_probabilities = stack.enter_context(file)
        if job.vector or job.instances:
            file = stack.enter_context(geotiff.open_map(made / "sure.tif", scene, 1, "uint8", nodata=IGNORE_INDEX))
            to_sure = stack.enter_context(geotiff.rows_of(file))
        for classes, p in bands:
            to_classes(classes)
            if to_values:
                to_values(classes)
            if to_probabilities:
                to_probabilities(p)
            if to_sure:
                to_sure(geotiff.pack(p.max(-1)))
            if job.overlay:
                thin.append(classes[-top % step :: step, ::step])
            top += len(classes)
    return np.concatenate(thin) if thin else None


def _write_polygons(
    made: Path, path: Path, scene: Scene, regions: Regions, names: Sequence[str], simplify: float
) -> list[tuple[Path, Path]]:
    """Writes polygons; returns the files, as a Shapefile has several, and where each belongs."""
    polygons = vectors.polygonize(regions, background(names))
    if simplify:
        polygons = vectors.simplified(polygons, simplify)
    folder = made / "vector"
    folder.mkdir()
    count = vectors.write(folder / path.name, scene, polygons, regions, names)
    console.print(f"{count} polygons in {path}")
    return [(file, path.with_name(file.name)) for file in sorted(folder.iterdir())]


def _finished(made: Path, cog: bool, averaged: bool = False) -> Path:
    """Returns a map, or with `cog` a cloud-optimized copy."""
    if not cog:
        return made
    copy = made.with_name(f"cog-{made.name}")
    geotiff.to_cog(made, copy, averaged)
    return copy


@contextmanager
def _whole_files(job: Job) -> Iterator[Path]:
    """Yields a temporary folder beside the class map. Raises UserError when files cannot be written."""
    folder = job.class_map.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
            yield Path(made)
    except OSError as error:
        raise UserError(f"{job.class_map}: cannot be written ({error.strerror or error})") from None
