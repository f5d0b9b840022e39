"""Writes the files of an image with coordinates: maps, polygons and objects, all of them or none."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from jaxseg.base.config import IGNORE_INDEX
from jaxseg.base.errors import UserError, problem
from jaxseg.base.options import Evaluation, Prediction
from jaxseg.base.terminal import console
from jaxseg.data.read.masks import ClassMap
from jaxseg.geo import maps as geotiff
from jaxseg.geo import vectors
from jaxseg.geo.burn import is_background
from jaxseg.geo.instances import AGREEMENT, HALO, separate
from jaxseg.geo.raster import Scene, cache_for, environment
from jaxseg.geo.regions import Regions, find_regions
from jaxseg.geo.sieve import merge_small
from jaxseg.inference import maps
from jaxseg.inference.jobs import Job
from jaxseg.inference.tiles import Raster

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
            regions = regions_of(made, scene, names, options)
            if job.vector:
                ready += _write_polygons(made, job.vector, scene, regions, names, options.simplify)
            if job.instances:
                numbers = object_numbers(regions, names)
                blocks = ((at, numbers[block]) for at, block in regions.blocks())
                geotiff.block_map(made / "instances.tif", scene, blocks, "int32", nodata=0)
                ready.append((made / "instances.tif", job.instances))
        if job.probabilities:
            ready.append((_finished(made / "probabilities.tif", options.cog, averaged=True), job.probabilities))
        beside = job.class_map.with_name(job.class_map.name + ".aux.xml")
        if table is None:
            (made / "names.xml").write_bytes(geotiff.categories(names))
            ready.append((made / "names.xml", beside))
        ready.append((_finished(classes if table is None else made / "values.tif", options.cog), job.class_map))
        if table is not None:
            beside.unlink(missing_ok=True)  # it belongs to the class map that is replaced
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
    """Returns the classes without objects: those called background, and class 0 if its name means that."""
    return tuple(i for i, name in enumerate(names) if name == "background" or (i == 0 and is_background(name)))


def object_numbers(regions: Regions, names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Returns the number of the object that a region is; 0 where it is background, or no region."""
    return np.where(np.isin(regions.classes, background(names)), 0, np.arange(len(regions) + 1))


def regions_of(made: Path, scene: Scene, names: Sequence[str], options: Prediction | Evaluation) -> Regions:
    """Finds the regions, or with --instances the objects, of a class map.

    - `made`: folder with classes.tif, and sure.tif with the packed probability of each pixel's class
    - `scene`: raster from which the map was made
    - `names`: names of the classes
    - `options`: `min_area`, `instances` and `watershed` count

    Small regions are merged before objects are separated, since a hole would divide its object, and once more after.
    """
    classes, sure = made / "classes.tif", made / "sure.tif"
    least = int(np.ceil(options.min_area / vectors.pixel_area(scene))) if options.min_area else 1
    regions = find_regions(made / "regions.tif", classes, scene, sure)
    if least > 1:
        regions = merge_small(regions, least)
    if not options.instances:
        return regions
    if least > 1:
        kinds = np.append(np.uint8(IGNORE_INDEX), regions.classes[1:])
        blocks = ((at, kinds[block].astype(int)) for at, block in regions.blocks())
        classes = made / "sieved.tif"
        geotiff.block_map(classes, scene, blocks, "uint8", nodata=IGNORE_INDEX)
    labeler = separate(options.watershed, background(names))
    objects = made / "objects.tif"
    regions = find_regions(objects, classes, scene, sure, labeler=labeler, halo=HALO, agreement=AGREEMENT)
    return merge_small(regions, least, alike=False) if least > 1 else regions


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
