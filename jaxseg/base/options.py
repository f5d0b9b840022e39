"""Options of the commands that use or export a trained run, and of those that make masks and tiles."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxseg.base.config import LARGEST, Data, Machine


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Class maps of new images by a trained run."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    input: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT ...")]
    """Images, folders (with their sub-folders) or quoted patterns such as 'scenes/**/*.tif'; at least one."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for the class maps: GeoTIFFs for images with coordinates, PNGs for others."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint: `best` validation mIoU, or `last`."""
    values: bool = False
    """Write the mask values or colors of the training data instead of class numbers with a palette."""
    overlay: bool = False
    """Also draw the classes over the image, in OUT/overlays; reduced to at most 4096 pixels a side."""
    probabilities: bool = False
    """Also write OUT/probabilities/NAME.npy: float16 [height width classes], NaN without data; with coordinates
    NAME.tif, a band per class."""
    probability_type: Literal["uint8", "float16", "float32"] = "uint8"
    """Type of the probabilities with coordinates. `uint8` has steps of 1 / 254, and the scale in the file."""
    cog: bool = False
    """Write maps with coordinates as cloud-optimized GeoTIFFs, with overviews."""
    vector: Literal["gpkg", "geojson", "shp", "fgb"] | None = None
    """Also write OUT/NAME.gpkg, or another format: polygons with class, name, area and mean probability."""
    simplify: float = 0.0
    """Simplify the polygons by about so many pixels; borders that neighbors share stay shared."""
    min_area: float = 0.0
    """Square meters below which a polygon becomes part of its largest neighbor."""
    instances: bool = False
    """Separate touching objects of a class, and write their numbers to OUT/instances/NAME.tif."""
    watershed: Literal["distance", "probability"] = "distance"
    """Measure by which --instances separates: distance to the outline, or probability."""
    tile: int = 512
    """Side in pixels of the tiles into which larger images are cut."""
    overlap: float = 0.5
    """Share of a tile that the next one overlaps, 0 to 0.9."""
    tta: bool = False
    """Average over eight flips and quarter turns: more accurate, eight times the time."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles of an image at a time on each device, 1 or more."""
    devices: int | None = None
    """Devices of this machine that share the images and tiles: all accelerators, or one CPU, if not given. On a CPU as
    many are made."""
    overwrite: bool = False
    """Replace existing files."""
    skip_existing: bool = False
    """Skip images whose files all exist, to continue after a stop."""
    shard: str | None = None
    """Part of the images to predict, such as 2/8; if not given, what Slurm or Open MPI says of this process."""
    on_bad_file: Literal["error", "skip"] = "error"
    """`error` exits with 2 after images that cannot be read; `skip` only names them. The others are predicted."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Scored(Data):
    """Images and masks to score."""

    labels: tuple[str, ...] | None = None
    """Labels of SCENE: a vector file (GeoPackage, GeoJSON, Shapefile, FlatGeobuf) or a raster, in any CRS."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a trained run on images with masks, or on a scene with polygons."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER|SCENE")] = None
    """Folder of images and masks, as --data; the run's own data if not given. Or a file with coordinates, and --labels.
    """
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for the results; RUN/evaluation, or RUN/evaluation-<name of FOLDER>, if not given."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint: `best` validation mIoU, or `last`."""
    split: Literal["validation", "training", "all", "test"] | None = None
    """Images to score; if not given `validation` for the run's own data, `all` for other data. `test`: the folders of
    test images and masks that go with the data's layout, such as test/ Ltest/ or test/ testannot/."""
    tile: int = LARGEST
    """Side in pixels of the tiles into which larger images are cut."""
    overlap: float = 0.5
    """Share of a tile that the next one overlaps, 0 to 0.9."""
    tta: bool = False
    """Average over eight flips and quarter turns: more accurate, eight times the time."""
    batch_size: Annotated[int, tyro.conf.arg(aliases=("-b",))] = 4
    """Tiles of an image at a time on each device, 1 or more."""
    overwrite: bool = False
    """Replace existing files."""
    worst: int = 6
    """Images with the lowest mIoU in worst.png; 0 draws none."""
    class_field: str | None = None
    """Attribute of the polygons of --labels that holds their class: a name or mask value of the run's classes."""
    layer: str | None = None
    """Layer of --labels; needed if there are several."""
    aoi: Path | None = None
    """Vector file of the area of SCENE that is labeled; all if not given."""
    instances: bool = False
    """Separate touching objects of SCENE, for the scores of objects."""
    watershed: Literal["distance", "probability"] = "distance"
    """Measure by which --instances separates: distance to the outline, or probability."""
    min_area: float = 0.0
    """Square meters below which an object of SCENE becomes part of its largest neighbor."""
    debug: bool = False
    """Show the traceback of an error."""
    data: tyro.conf.OmitArgPrefixes[Data] = dataclasses.field(default_factory=Scored)
    machine: tyro.conf.OmitArgPrefixes[Machine] = dataclasses.field(default_factory=Machine)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Polygons of COCO, labelme or YOLO as masks."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder with annotation files and images, or one COCO file."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for the masks. If not given, masks/ in FOLDER, or beside the folder images/ that holds the images."""
    format: Literal["auto", "coco", "labelme", "yolo"] = "auto"
    """Kind of the annotation files; `auto` looks into them."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Image tiles and masks of scenes with coordinates."""

    scenes: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SCENE ...")]
    """GeoTIFF files, or others that GDAL reads, of equal bands and type; at least one."""
    labels: tuple[Path, ...]
    """A vector file (GeoPackage, GeoJSON, Shapefile, FlatGeobuf) or a raster; or one for each scene. In any CRS."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder for images/, masks/, tiles.gpkg and tiles.json; new or empty."""
    size: int = 256
    """Side of a tile in pixels. The last ones of a row or column are moved inward; smaller scenes are padded."""
    overlap: float = 0.0
    """Share of a tile that the next one overlaps, 0 to 0.9."""
    resolution: float | None = None
    """Side of a pixel in units of the scene's CRS, to which scenes are resampled (bilinear, labels nearest)."""
    layer: str | None = None
    """Layer of the labels; needed if there are several."""
    class_field: str | None = None
    """Attribute of the polygons that holds their class; if not given all are of class 1. Class 0 is background."""
    class_values: tuple[str, ...] = ()
    """Values of --class-field of classes 1, 2, ...; all that occur, sorted, if not given. Others are ignored."""
    all_touched: bool = False
    """Burn all pixels that a polygon touches, not only those whose center it holds."""
    border: int = 0
    """Number of pixels to ignore on each side where two polygons meet."""
    aoi: Path | None = None
    """File of the labeled area: polygons, or a raster that is above 0 there. Pixels outside are ignored."""
    keep_empty: float = 1.0
    """Share of the tiles without any object to keep, 0 to 1, drawn by --seed. Tiles without labels are left out."""
    seed: int = 0
    """Seed of --keep-empty."""
    overwrite: bool = False
    """Replace tiles that an earlier call wrote to --out."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(frozen=True)
class Export:
    """A trained run as files for others."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    to: tuple[Literal["onnx", "pth", "safetensors", "torch-code"], ...]
    """`onnx`: a network for onnxruntime. `pth`, `safetensors`: weights with the names of milesial's U-Net in PyTorch,
    or of segmentation_models.pytorch's. `torch-code`: a PyTorch module in one file, and its weights as safetensors."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for the files; RUN/export if not given."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint: `best` validation mIoU, or `last`."""
    probabilities: bool = False
    """Let the ONNX file return probabilities, float32 [batch height width classes], instead of classes."""
    fold: bool = True
    """Fold each BatchNorm into the convolution before it, in the ONNX file: faster, with equal results."""
    reader: Annotated[Literal["deepness"] | None, tyro.conf.arg(name="for")] = None
    """Write the ONNX file for `deepness`, a plugin of QGIS: its inputs, outputs and metadata."""
    resolution: float | None = None
    """Side of a pixel in centimeters, for --for deepness."""
    tile: int = 512
    """Side in pixels of the tiles into which a reader cuts images, for --for deepness."""
    push: str | None = None
    """Upload the files to hf:OWNER/NAME on the Hugging Face Hub. If there is no such repository, a private one is made.
    """
    public: bool = False
    """Make the repository of --push a public one."""
    overwrite: bool = False
    """Replace existing files."""
    debug: bool = False
    """Show the traceback of an error."""


def loading(options: Prediction | Evaluation) -> dict[str, object]:
    """Returns the keyword arguments of `jaxseg.load` that a command line gives."""
    return {name: getattr(options, name) for name in ("checkpoint", "tile", "overlap", "batch_size", "tta")}
