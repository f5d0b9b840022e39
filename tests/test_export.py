import dataclasses
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx

from jaxseg.base import extra
from jaxseg.base.config import Config, Model
from jaxseg.data.read.masks import ClassMap
from jaxseg.data.read.samples import Reading
from jaxseg.export.__main__ import main
from jaxseg.learn import optimizers
from jaxseg.learn.step import normalize
from jaxseg.nn import encoder_unet, unet
from jaxseg.nn.layers import BatchNorm
from jaxseg.runs.checkpoint import Checkpoints, Progress

if missing := extra.missing("export"):
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

import onnx
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import load_file

LABELS = ClassMap((0, 7, 9), ("soil", "wheat", "Zuckerrübe"))
COLOR = Reading(LABELS, 3, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), normalize="dataset", order="bgr")
SIZE = (2, 37, 45)


def make_run(folder, reading=COLOR, **model):
    """A run whose network has statistics as after training, and the network in evaluation."""
    config, rng = Config(model=Model(**({"widths": (4, 8, 16)} | model))), np.random.default_rng(0)
    net = unet.unet_from(config.model, in_channels=reading.channels, classes=len(reading.labels.names), seed=3)
    for _, layer in nnx.iter_graph(net):
        if isinstance(layer, BatchNorm):
            for name, low, high in (("mean", -1, 1), ("var", 0.1, 2), ("scale", 0.5, 2), ("bias", -1, 1)):
                variable = getattr(layer, name)
                variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), variable.dtype)
    description = {"classes": list(reading.labels.names), "in_channels": reading.channels, "reading": reading.to_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), default=str))
    optimizer = nnx.Optimizer(net, optimizers.adam(1e-3), wrt=nnx.Param)
    Checkpoints(folder, config, description).save("best", 1, net, optimizer, Progress(1))
    return unet.evaluation(net)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fields"
    return folder, make_run(folder)


def export(folder, *to, out=None, more=()):
    return main([str(folder), "--to", *to, *(["-o", str(out)] if out else []), *more])


def images(reading, seed=0):
    values = np.random.default_rng(seed).random((*SIZE, reading.channels))
    full = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1}[reading.dtype]
    return (values * full).astype(reading.dtype)


def logits(net, image, reading):
    run = nnx.jit(lambda net, image: net(normalize(image, reading.mean or None, reading.std or None)))
    return np.asarray(run(net, image))


def session(path, output=None):
    model = onnx.load(path)
    if output:
        model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def about(path):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


KINDS = {
    "color": (COLOR, {}),
    "bilinear, one band of uint16": (
        Reading(LABELS, 1, dtype="uint16", mean=(0.4,), std=(0.1,), order="bands"),
        {"upsample": "bilinear", "conv_bias": False},
    ),
    "twelve bands of float32": (
        Reading(LABELS, 12, dtype="float32", order="bands", mean=(3.0,) * 12, std=(2.0,) * 12),
        {"widths": (4, 8)},
    ),
    "resnet18": (COLOR, {"encoder": "resnet18"}),
    "resnet50": (Reading(LABELS, 5, dtype="uint16", order="bands"), {"encoder": "resnet50"}),
    "bfloat16": (Reading(LABELS, 4, dtype="int16", order="bgr"), {"widths": (4, 8), "precision": "bf16"}),
}


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    """Encoders of 4 channels instead of 64."""
    monkeypatch.setattr(encoder_unet, "BASE", 4)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.full] * (kind == "resnet50")) for kind in KINDS]
)
def test_onnx_files_compute_what_the_network_computes(tmp_path, kind, capsys):
    reading, model = KINDS[kind]
    net = make_run(tmp_path / "run", reading, **model)
    for _, layer in nnx.iter_graph(net):
        if getattr(layer, "dtype", None) is jnp.bfloat16:
            layer.dtype = jnp.float32
    assert export(tmp_path / "run", "onnx") == 0
    assert "onnx  logits within " in capsys.readouterr().out
    path, image = tmp_path / "run/export/model.onnx", images(reading)
    classes, found = session(path, "logits").run(None, {"image": image})
    expected = logits(net, image, reading)
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=1e-4 * np.abs(expected).max())
    assert (classes.dtype, classes.shape) == (np.uint8, SIZE)
    np.testing.assert_array_equal(classes, expected.argmax(-1))


def test_onnx_files_say_what_they_are(run, tmp_path):
    assert export(run[0], "onnx", out=tmp_path) == 0
    model, found = onnx.load(tmp_path / "model.onnx"), about(tmp_path / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert found["class_names"] == {"0": "soil", "1": "wheat", "2": "Zuckerrübe"}
    assert found["channels"] == ["blue", "green", "red"]
    assert (found["dtype"], found["mean"], found["std"]) == ("uint8", [0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    assert len(found["palette"]) == 3
    assert found["palette"][0].startswith("#")


def test_onnx_files_keep_batch_norm_on_request(run, tmp_path):
    for name, more in (("folded", ()), ("kept", ("--no-fold", "--probabilities"))):
        assert export(run[0], "onnx", out=tmp_path / name, more=more) == 0
    counts = {
        name: sum(node.op_type == "BatchNormalization" for node in onnx.load(tmp_path / name / "model.onnx").graph.node)
        for name in ("folded", "kept")
    }
    assert counts == {"folded": 0, "kept": 10}
    (found,) = session(tmp_path / "kept/model.onnx").run(None, {"image": images(COLOR)})
    np.testing.assert_allclose(found, jax.nn.softmax(logits(run[1], images(COLOR), COLOR)), atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_deepness_gets_its_metadata_and_the_bands_in_order(tmp_path, dtype):
    reading = dataclasses.replace(COLOR, dtype=dtype)
    net = make_run(tmp_path / "run", reading, widths=(4, 8))
    more = ("--for", "deepness", "--resolution", "30", "--tile", "256")
    assert export(tmp_path / "run", "onnx", out=tmp_path, more=more) == 0
    found = about(tmp_path / "model.onnx")
    assert (found["model_type"], found["resolution"], found["tile_size"]) == ("Segmentor", 30, 256)
    assert found["channels"] == ["red", "green", "blue"]
    model = session(tmp_path / "model.onnx")
    assert model.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert model.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    bgr = images(reading)
    tiles = np.float32(bgr[..., ::-1] * 1.0 / 255.0)  # from here on as in Deepness's ModelBase.preprocessing
    tiles = (tiles - np.float32(found["standardization_mean"])) / np.float32(found["standardization_std"])
    (probabilities,) = model.run(None, {"image": tiles.transpose(0, 3, 1, 2)})
    expected = jax.nn.softmax(logits(net, bgr, reading))
    np.testing.assert_allclose(probabilities.transpose(0, 2, 3, 1), expected, atol=5e-5)


def test_an_onnx_file_that_computes_another_result_is_not_written(run, tmp_path, monkeypatch, capsys):
    from jaxseg.export.graph import Graph

    right = Graph.conv
    monkeypatch.setattr(
        Graph, "conv", lambda self, layer, x: self.op("Mul", right(self, layer, x), self.constant(np.float32(1.001)))
    )
    assert export(run[0], "onnx", "safetensors", out=tmp_path / "out") == 2
    assert "computes another result than jaxseg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_load_strictly_and_read_red_green_blue(run, tmp_path):
    torch = pytest.importorskip("torch")
    from parity.reference.unet import UNet

    assert export(run[0], "pth", "safetensors", out=tmp_path) == 0
    loaded = torch.load(tmp_path / "model.pth", weights_only=True)
    reference = UNet(widths=(4, 8, 16), classes=3)
    reference.load_state_dict(loaded, strict=True)
    same = load_file(tmp_path / "model.safetensors")
    assert same.keys() == loaded.keys()
    for name, array in same.items():
        np.testing.assert_array_equal(array, loaded[name].numpy())
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert json.loads(file.metadata()["channels"]) == ["red", "green", "blue"]
    x = normalize(images(COLOR), COLOR.mean, COLOR.std)
    with torch.no_grad():
        found = reference.eval()(torch.from_numpy(np.array(x)[..., ::-1].transpose(0, 3, 1, 2).copy()))
    expected = logits(run[1], images(COLOR), COLOR)
    np.testing.assert_allclose(found.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5 * np.abs(expected).max())


CODE = """
import sys
sys.modules["jaxseg"] = None
sys.path.insert(0, sys.argv[1])
import numpy, torch, model
images = torch.from_numpy(numpy.load(sys.argv[1] + "/images.npy"))
with torch.no_grad():
    numpy.save(sys.argv[1] + "/logits.npy", model.load(sys.argv[1] + "/model.safetensors")(images).numpy())
"""


@pytest.mark.parametrize(
    "kind", ["color", "bilinear, one band of uint16", pytest.param("resnet18", marks=pytest.mark.full)]
)
def test_torch_code_computes_the_logits_without_jaxseg(tmp_path, kind):
    pytest.importorskip("torch")
    reading, model = KINDS[kind]
    net = make_run(tmp_path / "run", reading, **model)
    assert export(tmp_path / "run", "torch-code", out=tmp_path) == 0
    image = images(reading)
    given = image[..., ::-1] if reading.order == "bgr" else image
    np.save(tmp_path / "images.npy", given.transpose(0, 3, 1, 2).copy())
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], check=True)
    expected = logits(net, image, reading)
    found = np.load(tmp_path / "logits.npy").transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=5e-5 * np.abs(expected).max())


def test_the_card_has_the_hubs_front_matter_and_the_runs_scores(run, tmp_path):
    scores = {"miou": 0.5, "accuracy": 0.75, "mdice": 0.6, "mprecision": 0.6, "mrecall": 0.6}
    scores |= {name: [0.5, 0.5, None] for name in ("iou", "dice", "precision", "recall")}
    lines = [{"epoch": i, "validation": scores | {"miou": miou}} for i, miou in enumerate((0.5, 0.625, 0.4))]
    (run[0] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert export(run[0], "onnx", "safetensors", out=tmp_path) == 0
    _, front, body = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    parsed = yaml.safe_load(front)
    assert (parsed["library_name"], parsed["pipeline_tag"]) == ("jaxseg", "image-segmentation")
    assert "license" not in parsed
    assert "epoch 2 (checkpoint best): mIoU 0.6250" in body
    assert "| 2 | Zuckerrübe | 9 |" in body
    assert "mean blue 0.4, green 0.5, red 0.6" in body
    assert "model.pth" not in body


def test_files_are_not_overwritten_unasked_and_all_mistakes_are_told_at_once(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    more = ("--for", "deepness", "--probabilities", "--public")
    assert export(run[0], "onnx", out=tmp_path, more=more) == 2
    said = capsys.readouterr().err
    for part in ("--resolution, centimeters", "--probabilities", "--public", "README.md: exists"):
        assert part in said
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert export(run[0], "safetensors", out=tmp_path, more=("--overwrite",)) == 0
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith("---")


def test_missing_packages_are_named_with_their_extra(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extra, "missing", lambda name: ["onnxruntime"] if name == "export" else [])
    assert export(run[0], "onnx", out=tmp_path / "out") == 2
    assert "--to onnx needs onnxruntime: pip install 'jaxseg[export]'" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as an upload asks for."""

    status, seen = 200, []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.seen.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            address = f"http://{self.headers['Host']}/me/fields"
            self.answer({"url": address, "commitUrl": f"{address}/commit/1", "commitOid": "1"})

    def do_GET(self):
        self.answer({})

    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine that huggingface_hub talks to."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(Hub, "seen", [])
    yield Hub
    server.shutdown()
    server.server_close()


def test_push_makes_a_private_repository_and_uploads_the_files(run, tmp_path, hub, capsys):
    assert export(run[0], "safetensors", out=tmp_path, more=("--push", "hf:me/fields")) == 0
    assert "me/fields" in capsys.readouterr().out
    made, *_, commit = hub.seen
    assert made[0] == "/api/repos/create"
    asked = json.loads(made[1])
    assert asked.get("visibility") == "private" or asked.get("private") is True  # versions differ
    sent = [json.loads(line) for line in commit[1].splitlines()]
    assert {line["value"]["path"] for line in sent if line["key"] == "file"} == {"model.safetensors", "README.md"}


def test_a_hub_that_refuses_is_told_with_what_to_do(run, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(hub, "status", 401)
    assert export(run[0], "safetensors", out=tmp_path, more=("--push", "hf:me/fields")) == 2
    said = capsys.readouterr().err
    assert "the Hub refused" in said
    assert "hf auth login" in said
    assert (tmp_path / "model.safetensors").is_file()


def test_a_hub_that_cannot_be_reached_is_told(run, tmp_path, monkeypatch, capsys):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert export(run[0], "safetensors", out=tmp_path, more=("--push", "hf:me/fields")) == 2
    assert "--push hf:me/fields: the Hub cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("push", ["me/fields", "hf:fields", "hf:me/fi elds", "hf:a/b/c"])
def test_other_targets_of_push_are_refused_before_anything_is_written(run, tmp_path, push, capsys):
    pytest.importorskip("huggingface_hub")
    assert export(run[0], "safetensors", out=tmp_path / "out", more=("--push", push)) == 2
    assert f"--push is {push}; expected hf:OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
