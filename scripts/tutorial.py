# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Six points of a PyTorch article, in PyTorch and in JAX
# # 一篇 PyTorch 文章的六个要点：PyTorch 与 JAX 对照
#
# The Chinese article 《基于Pytorch的神经网络部分自定义设计》 customizes six parts of a segmentation project: the dataset, the initial
# weights, the learning rate, memory, overfitting and the loss. This notebook shows each part twice, in PyTorch and in `jaxseg`, and
# measures what it claims. Orange is always PyTorch, blue is always jaxseg. To run it: `pip install -e '.[tutorial]'`.
#
# 中文文章《基于Pytorch的神经网络部分自定义设计》讲了语义分割项目里可以自定义的六个部分：数据集、权重初始化、学习率、内存、过拟合和损失函数。本教程把每个部分各写两遍：一遍用 PyTorch，一遍用 `jaxseg`（JAX/Flax），文中的说法都当场测量。图中橙色始终是 PyTorch，蓝色始终是 jaxseg。运行前先执行 `pip install -e '.[tutorial]'`。
#
# | PyTorch | here · 这里 | |
# |---|---|---|
# | `nn.Module` | `nnx.Module` | a class with layers · 含有各层的类 |
# | images `[b c h w]`, float | images `[b h w c]`, uint8 | scaled on the device · 到设备上才缩放 |
# | `loss.backward()` | `nnx.value_and_grad(loss)` | the gradient is a return value · 梯度是返回值 |
# | `optimizer.step()` | `optimizer.update(model, gradients)` | Optax computes the update · 由 Optax 计算更新 |
# | `param_group["lr"] = rate` | `schedule(step) -> rate` | a function of the step · 学习率是步数的函数 |
# | `model.eval()` | `evaluation(model)` | a view with the same weights · 共享权重的视图 |
# | `torch.manual_seed(0)` | `nnx.Rngs(0)` | no global state · 没有全局随机状态 |
# | runs line by line | `nnx.jit(train_step)` | compiled once, then reused · 编译一次，反复使用 |

# %%
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import tracemalloc
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import nnx
from IPython.display import Image, display
from torch import nn
from torch.utils.data import DataLoader, Dataset

from jaxseg import Pipeline, UNet, eval_step, from_torch, initializers, losses, metrics, schedules, train_step
from jaxseg.data.find.listing import Pair
from jaxseg.data.made.fields import make_fields, write_png
from jaxseg.learn import class_weights
from jaxseg.learn.step import normalize
from jaxseg.nn.unet import evaluation
from parity.reference.unet import UNet as TorchUNet

TORCH, JAX, GRAY = "#d55e00", "#0072b2", "#8a8a8a"
plt.rcParams.update(
    {
        "figure.dpi": 90,
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
)
torch.set_num_threads(1)  # the networks below are tiny
home, work = Path.cwd(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.chdir(work.name)  # everything is written here, and deleted by the last cell

make_fields(Path("fields"), train=48, val=12, size=96)
for folder in ("train", "Ltrain", "val", "Lval"):
    names = sorted(path.name for path in Path("fields", folder).iterdir())
    print(f"fields/{folder:7} {len(names)} files: {names[0]}, {names[1]}, ...")

# %% [markdown]
# The data are made-up crop fields in the article's folders: tiles in `train/` and `val/`, masks in `Ltrain/` and `Lval/`. A mask is 255
# in fields and 0 elsewhere.
#
# 数据是程序生成的农田图，文件夹与原文一致：图块在 `train/` 和 `val/`，标签在 `Ltrain/` 和 `Lval/`。标签里农田为 255，其余为 0。
#
# ## 1. Dataset and values · 数据集与像素值
#
# **PyTorch.** A `Dataset` has a length and answers for an index. `cv2.imread` returns blue, green, red. `// 255` turns the mask into
# classes 0 and 1.
#
# **PyTorch。** `Dataset` 要给出长度，并能按下标取样本。`cv2.imread` 返回的通道顺序是蓝、绿、红；`// 255` 把标签变成类别 0 和 1。


# %%
def files(split):
    """Images of a split and their masks."""
    images = sorted(Path("fields", split).glob("*.png"))
    return [(image, Path("fields", f"L{split}", f"{image.stem}_mask.png")) for image in images]


class Tiles(Dataset):
    def __init__(self, split):
        self.files = files(split)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image, mask = self.files[index]
        pixels = torch.from_numpy(cv2.imread(str(image)))  # uint8 [h w c], blue first
        classes = torch.from_numpy(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) // 255)
        return pixels.permute(2, 0, 1).float() / 255, classes.long()


torch_images, torch_masks = next(iter(DataLoader(Tiles("train"), batch_size=4)))

# %% [markdown]
# **jaxseg.** A `Pipeline` takes pairs of files and yields batches. Bytes stay bytes until they are on the device, where the compiled
# step divides by 255.
#
# **jaxseg。** `Pipeline` 接收成对的文件，逐批给出数据。像素在到达设备之前一直是字节，除以 255 在编译好的训练步里完成。

# %%
pairs = [Pair(image, mask) for image, mask in files("train")]
batch = next(Pipeline(pairs, batch_size=4).epoch())

for name, array in (
    ("PyTorch images", torch_images.numpy()),
    ("PyTorch masks", torch_masks.numpy()),
    ("jaxseg images", batch["image"]),
    ("jaxseg masks", batch["mask"]),
):
    print(f"{name:15} {array.dtype!s:8} {array.shape!s:17} {array.nbytes / 2**10:5.0f} KiB")

scaled = np.asarray(normalize(batch["image"]))
wrong_images = int((scaled != torch_images.permute(0, 2, 3, 1).numpy()).sum())
wrong_masks = int((batch["mask"] != torch_masks.numpy()).sum())
print(f"\nvalues that differ, of {scaled.size} pixels x channels: {wrong_images}; classes that differ: {wrong_masks}")

every_byte = np.arange(256, dtype=np.uint8)
exact = every_byte.astype(np.float32) / 255
compiled = np.asarray(jax.jit(lambda x: x.astype(jnp.float32) / 255)(every_byte))
print(f"bytes whose x / 255 is off by one bit when JAX compiles it: {(compiled != exact).sum()} of 256")
print(f"the same with jaxseg's normalize: {(np.asarray(jax.jit(normalize)(every_byte[:, None]))[:, 0] != exact).sum()}")
assert wrong_images == wrong_masks == 0

# %% [markdown]
# Two things to take away. Scaling to 0..1 helps the optimizer, but it costs memory: float32 takes four times the bytes of uint8, and
# int64 masks eight times. And a compiler may replace a division by a product, which is not the same number; jaxseg undoes that.
#
# 两点值得记住。缩放到 0~1 有利于优化，却不省内存：float32 是 uint8 的四倍，int64 的标签是八倍。另外，编译器会把除法换成乘法，得到的数并不完全相同；jaxseg 对此做了修正，结果与 PyTorch 逐位一致。
#
# **What a mask value does.** Only 255 survives `// 255`. A mask that was resized with interpolation has values in between, and they all
# become background.
#
# **标签值的作用。** `// 255` 只保留恰好等于 255 的像素。标签若用插值缩放过，就会出现中间值，它们统统变成背景。

# %%
image_file, mask_file = files("train")[4]
bgr, mask = cv2.imread(str(image_file)), cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE)
half = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_LINEAR)
resized = cv2.resize(half, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
lost = (mask == 255) & (resized // 255 == 0)
print(f"values in the mask: {np.unique(mask).size}; after resizing: {np.unique(resized).size}")
print(f"field pixels that // 255 loses then: {lost.sum() / (mask == 255).sum():.1%}")

painted = np.where((mask == 255)[..., None], [0.35, 0.65, 0.95], 0.93)
painted[lost] = [0.84, 0.37, 0.0]
titles = ("as imread returns it", "channels turned to RGB", "mask: 0 and 255", "orange: lost by // 255")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9))
for axis, title, picture in zip(axes, titles, (bgr, bgr[..., ::-1], mask, painted)):
    axis.imshow(picture, cmap="gray", interpolation="nearest")
    axis.set(title=title)
    axis.axis("off")
plt.show()

# %% [markdown]
# And if the division is forgotten? PyTorch stops at class 255. In jaxseg 255 is the label of pixels to ignore, so a loop of your own
# would silently skip all fields. The commands never do: `check` reads every mask first, names what it finds and the flag that helps.
#
# 如果忘了做除法呢？PyTorch 会因为类别 255 报错。在 jaxseg 里 255 表示“忽略该像素”，自己写的循环会悄悄跳过所有农田。命令行不会：`check` 先读完所有标签，指出问题，并给出能解决它的参数。

# %%
logits = np.zeros((1, 96, 96, 2), np.float32)
try:
    F.cross_entropy(torch.from_numpy(logits).permute(0, 3, 1, 2), torch.from_numpy(mask[None]).long())
except IndexError as error:
    print(f"PyTorch: IndexError: {error}")
print(f"jaxseg:  {(mask == 255).mean():.0%} of the pixels are ignored")


def command(line, skip=0, lines=None):
    """Runs `python -m ...` and prints its output, or `lines` lines of it after the first `skip`, without timings."""
    print(f"$ python -m {line}")
    plain = {name: value for name, value in os.environ.items() if "COLOR" not in name}  # Jupyter asks for colors
    run = [sys.executable, "-m", *line.split()]
    done = subprocess.run(run, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=plain)
    text = [re.sub(r"  [\d.]+ images/s.*", "", line).rstrip() for line in done.stdout.splitlines()]
    print(*text[skip:][:lines], sep="\n")


for image, mask_of in files("train")[:10]:
    write_png(Path("resized/images", image.name), cv2.imread(str(image)))
    small = cv2.resize(cv2.imread(str(mask_of), cv2.IMREAD_GRAYSCALE), (48, 48), interpolation=cv2.INTER_LINEAR)
    write_png(Path("resized/masks", image.name), cv2.resize(small, (96, 96), interpolation=cv2.INTER_LINEAR))
command("jaxseg.check resized", skip=3)

# %% [markdown]
# ## 2. Initial weights · 权重初始化
#
# **PyTorch.** A loop over `model.children()` sees only the outermost modules, so it misses convolutions inside nested `Sequential`s.
# `model.apply` visits every module. It still misses `ConvTranspose2d`, which is not a subclass of `Conv2d`.
#
# **PyTorch。** 对 `model.children()` 循环只能看到最外层模块，嵌套在 `Sequential` 里的卷积会被漏掉；`model.apply` 会访问每一个模块。但 `ConvTranspose2d` 不是 `Conv2d` 的子类，仍然不会被初始化。


# %%
def kaiming(module):
    if type(module) is nn.Conv2d:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def changed(walk):
    """Counts, by type of layer, the weights that `walk` changes in a U-Net."""
    torch.manual_seed(0)
    model = TorchUNet(widths=(32, 64, 128))
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    before = [layer.weight.clone() for layer in layers]
    walk(model)
    counts = {}
    for layer, old in zip(layers, before):
        reached, total = counts.get(type(layer).__name__, (0, 0))
        counts[type(layer).__name__] = (reached + (not torch.equal(layer.weight, old)), total + 1)
    return model, counts


_, by_loop = changed(lambda model: [kaiming(part) for part in model.children()])
torch_net, by_apply = changed(lambda model: model.apply(kaiming))
for how, counts in (("loop over children()", by_loop), ("apply", by_apply)):
    print(f"{how:21}", ", ".join(f"{name}: {reached} of {total}" for name, (reached, total) in counts.items()))
assert by_loop["Conv2d"][0] == 0
assert by_apply["ConvTranspose2d"][0] == 0

# %% [markdown]
# **jaxseg.** Flax draws a weight when its layer is built, so the rule is an argument and nothing has to be walked. `init="article"` is
# the rule above, with its exception. The distributions are PyTorch's. JAX's own `he_normal` is another one: a *truncated* normal, scaled
# by `fan_in` where the rule says `fan_out`.
#
# **jaxseg。** Flax 在建立层时就抽取权重，规则作为参数传入，不需要遍历。`init="article"` 就是上面的规则，连同它漏掉的部分。分布与 PyTorch 相同；JAX 自带的 `he_normal` 则是另一种分布：*截断*正态，并且除以 `fan_in`。

# %%
jax_net = UNet(widths=(32, 64, 128), init="article", rngs=nnx.Rngs(0))
shape = (3, 3, 64, 128)  # h w in out
empty = torch.empty(shape).permute(3, 2, 0, 1).contiguous()  # out in h w
key = jax.random.key(0)
drawn = {
    "Conv2d, Kaiming, fan_out": (torch_net.down2.maxpool_conv[1].double_conv[0].weight, jax_net.down[2].conv1.kernel),
    "ConvTranspose2d, not reached": (torch_net.up1.up.weight, jax_net.up[0].up.kernel),
    "Conv2d, Xavier": (nn.init.xavier_normal_(empty.clone()), initializers.xavier_normal()(key, shape)),
    "Kaiming against JAX's he_normal": (
        nn.init.kaiming_normal_(empty.clone(), mode="fan_out"),
        jax.nn.initializers.he_normal()(key, shape),
    ),
}
print(f"{'':32}   PyTorch: std, max/std    jaxseg: std, max/std")
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9))
for axis, (title, sides) in zip(axes, drawn.items()):
    torch_side, jax_side = (np.asarray(side.detach() if torch.is_tensor(side) else side[...]).ravel() for side in sides)
    reach = 1.05 * max(np.abs(torch_side).max(), np.abs(jax_side).max())
    bins = np.linspace(-reach, reach, 61)
    axis.hist(torch_side, bins, density=True, color=TORCH, alpha=0.35, label="PyTorch")
    label = "JAX's he_normal" if "he_normal" in title else "jaxseg"
    axis.hist(jax_side, bins, density=True, histtype="step", color=JAX, lw=1.4, label=label)
    axis.set(title=title, xlabel="weight", yticks=[])
    axis.legend(loc="upper right", fontsize=8, handlelength=1)
    axis.set_ylim(top=1.35 * axis.get_ylim()[1])
    axis.locator_params(axis="x", nbins=4)
    figures = [f"{x.std():.4f}, {np.abs(x).max() / x.std():.2f}" for x in (torch_side, jax_side)]
    print(f"{title:32}   {figures[0]:>21}   {figures[1]:>21}")
axes[0].set_ylabel("density")
plt.show()

# %% [markdown]
# **Why it matters.** Twelve layers with ReLU, no BatchNorm: with too small a gain the signal dies out on its way, with Kaiming's it
# keeps its size. The frameworks draw different numbers from one distribution, and agree.
#
# **为什么重要。** 十二层网络加 ReLU，不用 BatchNorm：增益太小，信号逐层消失；Kaiming 的增益使信号大小保持不变。两个框架抽到的数不同，但分布相同，曲线也一致。


# %%
def torch_scales(init, depth=12):
    torch.manual_seed(0)
    x, scales = torch.randn(256, 512), []
    for _ in range(depth):
        x = F.linear(x, init(torch.empty(512, 512))).relu()
        scales.append(float(x.std()))
    return scales


def jax_scales(init, depth=12):
    first, *keys = jax.random.split(jax.random.key(0), depth + 1)
    x, scales = jax.random.normal(first, (256, 512)), []
    for key in keys:
        x = jax.nn.relu(x @ init(key, (512, 512)))
        scales.append(float(x.std()))
    return scales


rules = {
    "Kaiming": (
        partial(nn.init.kaiming_normal_, nonlinearity="relu"),
        initializers.kaiming_normal(nonlinearity="relu"),
    ),
    "Xavier": (nn.init.xavier_normal_, initializers.xavier_normal()),
    "PyTorch's default": (partial(nn.init.kaiming_uniform_, a=math.sqrt(5)), initializers.torch_default()),
}
figure, axis = plt.subplots(figsize=(6.5, 3.3))
layers = np.arange(1, 13)
for name, (torch_init, jax_init) in rules.items():
    here, there = jax_scales(jax_init), torch_scales(torch_init)
    axis.semilogy(layers, there, color=TORCH, lw=1.6, label="PyTorch" if name == "Kaiming" else None)
    axis.semilogy(layers, here, "o", color=JAX, ms=4, label="jaxseg" if name == "Kaiming" else None)
    axis.annotate(name, (12.2, there[-1]), va="center", annotation_clip=False)
    print(f"{name:18} after 12 layers: PyTorch {there[-1]:.1e}, jaxseg {here[-1]:.1e}")
axis.set(
    title="Size of the signal through the network", xlabel="layer", ylabel="standard deviation", xticks=layers[::2]
)
axis.legend(loc="lower left")
plt.show()

# %% [markdown]
# ## 3. The scheduler that is no cosine · 不是余弦的余弦调度器
#
# **PyTorch.** The article warms up for 5 epochs and then means to follow half a cosine until epoch 40. But its class stores each result
# in the attribute from which the next call starts. The factors multiply up.
#
# **PyTorch。** 原文先预热 5 轮，然后打算沿半个余弦下降到第 40 轮。可是它的类把每次的结果写回了下一次计算要用的属性，于是各轮的因子连乘了起来。

# %%
PEAK, WARMUP, TOTAL = 0.01, 5, 40


class Compounding:
    """The article's idea in its shortest form."""

    def __init__(self):
        self.rate = PEAK

    def __call__(self, epoch):
        if epoch < WARMUP:
            return PEAK * epoch / WARMUP
        self.rate *= (1 + math.cos(math.pi * (epoch - WARMUP) / (TOTAL - WARMUP))) / 2  # the old rate is gone
        return self.rate


scheduler = Compounding()
in_torch = np.array([scheduler(epoch) for epoch in range(TOTAL + 1)])  # param_group["lr"] = scheduler(epoch)

# %% [markdown]
# **jaxseg.** A schedule is a pure function of the step: it has no memory, so it cannot compound by accident. Both curves are here:
# `schedules.article` is what the class computes, `schedules.warmup_cosine` is what it means (Optax's own).
#
# **jaxseg。** 调度器是步数的纯函数：没有内部状态，也就不会意外连乘。两条曲线都有：`schedules.article` 是那个类实际算出来的，`schedules.warmup_cosine` 是它本来想要的（即 Optax 自带的）。

# %%
epochs = np.arange(TOTAL + 1)
product = np.array([schedules.article(PEAK, warmup=WARMUP, total=TOTAL)(epoch) for epoch in epochs])
cosine = np.array([schedules.warmup_cosine(PEAK, warmup=WARMUP, total=TOTAL)(epoch) for epoch in epochs])

largest = np.abs(in_torch - product).max() / PEAK
print(f"largest difference of PyTorch's class and schedules.article: {largest:.1e} of the peak")
tenth = {name: int(epochs[WARMUP:][curve[WARMUP:] < PEAK / 10][0]) for name, curve in (("a", product), ("c", cosine))}
print(f"below a tenth of the peak: the class from epoch {tenth['a']} on, a cosine from epoch {tenth['c']} on")
print(f"sum of all rates, the class over a cosine: {product.sum() / cosine.sum():.3f}")
scheduler = Compounding()
twice = [[scheduler(epoch) for _ in range(1 + (epoch == 10))][-1] for epoch in epochs]  # once more, to log it
print(f"rate at epoch 15: {in_torch[15]:.5f}; if it was also asked for a log line in epoch 10: {twice[15]:.5f}")
assert largest < 1e-6

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
for axis in axes:
    axis.plot(epochs, cosine, color=GRAY, lw=1.6, label="warmup_cosine: a cosine")
    axis.plot(epochs, in_torch, color=TORCH, lw=4, alpha=0.4, label="PyTorch: the article's class")
    axis.plot(epochs, product, color=JAX, lw=1.4, label="jaxseg: schedules.article")
    axis.axhline(PEAK / 10, color="#bbbbbb", lw=0.8, ls=":")
    axis.set(xlabel="epoch", ylabel="learning rate")
axes[0].set_title("Meant: a cosine. Computed: a product of cosines")
axes[1].legend(loc="lower left")
axes[1].set(title="On a logarithmic scale", yscale="log", xlim=(WARMUP, TOTAL), ylim=(1e-8, 3e-2))
for name, curve in (("a", product), ("c", cosine)):
    at = tenth[name]
    axes[1].plot(at, curve[at], "o", color=JAX if name == "a" else GRAY, ms=5)
    axes[1].annotate(f"epoch {at}", (at, curve[at]), xytext=(6, 6), textcoords="offset points")
plt.show()

# %% [markdown]
# ## 4. Memory: a list against an iterator · 内存:列表与迭代器
#
# `sys.getsizeof` of a list counts pointers, not what they point to; `tracemalloc` counts everything. An iterator makes one item at a
# time, and is empty after one pass.
#
# `sys.getsizeof` 只算列表里的指针，不算指针所指的对象；`tracemalloc` 才把一切都算进去。迭代器每次只生成一个元素，走完一遍就空了。


# %%
def peak(make):
    """Result of `make`, and the peak of the memory allocated meanwhile, in MiB."""
    tracemalloc.start()
    try:
        return make(), tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


squares, list_mib = peak(lambda: [i * i for i in range(300_000)])
total, iterator_mib = peak(lambda: sum(i * i for i in range(300_000)))
print(f"list:     getsizeof {sys.getsizeof(squares) / 2**20:.1f} MiB, really {list_mib:.1f} MiB")
print(f"iterator: getsizeof {sys.getsizeof(iter(squares))} bytes, really {iterator_mib:.3f} MiB")
once = (i * i for i in range(3))
print("first pass:", list(once), " second pass:", list(once))
del squares

# %% [markdown]
# The same with tiles. A list of all samples grows with the data set. PyTorch's `DataLoader` and jaxseg's `Pipeline` hold a batch or two,
# whatever its size. `pipeline.epoch(e)` is a new iterator for each epoch, whose order follows from the seed and `e` alone, so a
# stopped run can go on in the middle.
#
# 换成图块也一样。把所有样本放进列表，内存随数据量增长；PyTorch 的 `DataLoader` 和 jaxseg 的 `Pipeline` 不论数据多少，只占一两个批次。`pipeline.epoch(e)` 每轮给出新的迭代器，顺序只取决于种子和轮数 `e`，所以中断的训练可以从中途接着走。


# %%
class Bytes(Tiles):
    """Tiles as NumPy arrays, whose memory tracemalloc sees."""

    def __getitem__(self, index):
        image, mask = self.files[index % len(self.files)]
        return cv2.imread(str(image)), cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE) // 255


tiles, counts = Bytes("train"), (48, 96, 192, 384)
ways = {
    "a list of samples": lambda n: [tiles[i] for i in range(n)],
    "DataLoader": lambda n: [None for _ in DataLoader(tiles, batch_size=4, sampler=range(n), collate_fn=list)],
    "Pipeline": lambda n: [None for _ in Pipeline(pairs * (n // 48), batch_size=4).epoch()],
}
mib = {name: [peak(lambda n=n, read=read: read(n))[1] for n in counts] for name, read in ways.items()}
print(f"{'peak MiB, by number of tiles':30}", *(f"{n:>6}" for n in counts))
for name, peaks in mib.items():
    print(f"{name:30}", *(f"{x:6.1f}" for x in peaks))

figure, axis = plt.subplots(figsize=(6.5, 3.2))
for (name, peaks), color, shift in zip(mib.items(), (GRAY, TORCH, JAX), (0, -5, 7)):
    axis.plot(counts, peaks, "o-", color=color, ms=4)
    place = {"xytext": (8, shift), "textcoords": "offset points", "va": "center"}
    axis.annotate(name, (counts[-1], peaks[-1]), color=color, **place)
axis.set(title="Peak memory of one epoch", xlabel="tiles in the data set", ylabel="MiB", xticks=counts, ylim=(0, None))
axis.margins(x=0.04)
plt.show()

# %% [markdown]
# ## 5. Curves of overfitting · 过拟合曲线
#
# Six tiles are too few: the network learns them by heart. The sign is a training loss that falls while the validation loss rises. Here
# are both loops, the same lines in the same order. Both start from the same weights and read the same batches.
#
# 六张图块太少，网络会把它们背下来。标志是训练损失继续下降，验证损失却在上升。下面是两个训练循环，逐行对应；初始权重相同，读到的批次也相同。


# %%
def initial_weights(widths):
    torch.manual_seed(0)
    return TorchUNet(widths=widths, conv_bias=False).apply(kaiming).state_dict()


def tensors(batch):
    images, masks = (torch.from_numpy(batch[name][batch["valid"]]) for name in ("image", "mask"))
    return images.permute(0, 3, 1, 2).float() / 255, masks.long()


def fit_torch(widths, loss, training, validation, epochs, rate):
    model = TorchUNet(widths=widths, conv_bias=False)
    model.load_state_dict(initial_weights(widths))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    history = []
    for epoch in range(epochs):
        seen, unseen = metrics.Totals(), metrics.Totals()
        model.train()
        for images, masks in map(tensors, training.epoch(epoch)):
            optimizer.zero_grad()
            logits = model(images)
            value = loss(logits, masks)
            value.backward()
            optimizer.step()
            seen.add(scores(value, logits, masks))
        model.eval()
        with torch.no_grad():
            for images, masks in map(tensors, validation.epoch()):
                logits = model(images)
                unseen.add(scores(loss(logits, masks), logits, masks))
        history.append((seen.summary(), unseen.summary()))
    return history


def scores(value, logits, masks):
    pairs_of_classes = (masks * 2 + logits.argmax(1)).flatten()
    return {"loss": value.item(), "confusion": torch.bincount(pairs_of_classes, minlength=4).reshape(2, 2).numpy()}


def fit_jax(widths, loss, training, validation, epochs, rate, **options):
    model = UNet(widths, conv_bias=False, rngs=nnx.Rngs(0))
    from_torch(model, initial_weights(widths))
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    step = nnx.jit(partial(train_step, loss=loss, schedule=optax.constant_schedule(rate), **options))
    evaluate = nnx.jit(partial(eval_step, loss=loss))
    history = []
    for epoch in range(epochs):
        seen, unseen = metrics.Totals(), metrics.Totals()
        for batch in training.epoch(epoch):
            seen.add(step(model, optimizer, batch))  # forward, backward, update and scores: one compiled program
        for batch in validation.epoch():
            unseen.add(evaluate(evaluation(model), batch))
        history.append((seen.summary(), unseen.summary()))
    return history


val_pairs = [Pair(image, mask) for image, mask in files("val")]
validation = Pipeline(val_pairs, batch_size=4, cache="memory")
few = Pipeline(pairs[:6], batch_size=2, shuffle=True, cache="memory")
many = Pipeline(pairs, batch_size=2, shuffle=True, cache="memory")
setting = {"widths": (8, 16, 32), "validation": validation, "rate": 5e-3}
runs = {
    "PyTorch, 6 tiles": fit_torch(loss=F.cross_entropy, training=few, epochs=40, **setting),
    "jaxseg, 6 tiles": fit_jax(loss=losses.cross_entropy, training=few, epochs=40, **setting),
    "PyTorch, 48 tiles": fit_torch(loss=F.cross_entropy, training=many, epochs=5, **setting),
    "jaxseg, 48 tiles": fit_jax(loss=losses.cross_entropy, training=many, epochs=5, **setting),
}
print(f"{'after 120 steps of 2 tiles':28} accuracy, training   accuracy, validation   gap")
for name, history in runs.items():
    seen, unseen = (part["accuracy"] for part in history[-1])
    print(f"{name:28} {seen:18.3f} {unseen:22.3f} {seen - unseen:5.2f}")
    if "6 tiles" in name:
        assert history[-1][0]["loss"] < 0.5 * history[-1][1]["loss"]

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for name, history in runs.items():
    axis, color = axes[int("48" in name)], TORCH if "PyTorch" in name else JAX
    steps = np.linspace(0, 120, len(history) + 1)[1:]
    for part, (label, line) in enumerate((("training", "-"), ("validation", "--"))):
        curve = [epoch[part]["loss"] for epoch in history]
        axis.plot(steps, curve, line, color=color, lw=1.6, label=f"{name.split(',')[0]}, {label}")
axes[0].set(title="6 tiles: learned by heart", ylabel="cross-entropy", xlabel="step", xlim=(0, 124), ylim=(0, 2.5))
axes[1].set(title="48 tiles, as many steps", xlabel="step", xlim=(0, 124))
axes[1].legend(loc="upper right")
plt.show()

# %% [markdown]
# The curves begin alike and then drift apart a little. Is that a bug? Section 8 answers it.
#
# 曲线开始时重合，后来略有分离。这是程序错误吗？第 8 节给出答案。
#
# ## 6. Losses for a rare class · 类别不平衡的损失函数
#
# Two small bright discs per tile, say bales of straw, are the rare class. **PyTorch** has weights in `cross_entropy`; Dice and focal
# loss are a few lines each. **jaxseg** has them under the names of segmentation_models.pytorch. First: do they agree on one batch?
#
# 每张图块里画两个小亮点（比如草捆）作为稀有类别。**PyTorch** 的 `cross_entropy` 自带权重，Dice 和 focal 各写几行即可；**jaxseg** 都有，名称与 segmentation_models.pytorch 一致。先看它们在同一个批次上是否相等。


# %%
def with_discs(split, rng):
    made = []
    for image, _ in files(split):
        pixels = cv2.imread(str(image))[:64, :64]
        mask = np.zeros((64, 64), np.uint8)
        for x, y in rng.integers(4, 60, (2, 2)).tolist():
            cv2.circle(mask, (x, y), 2, 255, -1)
        bright = np.minimum(pixels.astype(int) + 45 * (mask > 0)[..., None], 255).astype(np.uint8)
        made.append(Pair(Path("discs", split, image.name), Path("discs", f"L{split}", image.name)))
        write_png(made[-1].image, bright)
        write_png(made[-1].mask, mask)
    return made


def torch_dice(logits, masks):
    p, t = logits.softmax(1), F.one_hot(masks, 2).movedim(-1, 1)
    return (1 - 2 * (p * t).sum((0, 2, 3)) / (p + t).sum((0, 2, 3))).mean()


def torch_focal(logits, masks, gamma=2.0):
    t = F.one_hot(masks, 2).movedim(-1, 1).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    return ((1 - (-each).exp()) ** gamma * each).mean()


rng = np.random.default_rng(0)
discs, val_discs = with_discs("train", rng)[:32], with_discs("val", rng)
training = Pipeline(discs, batch_size=4, shuffle=True, cache="memory")
validation = Pipeline(val_discs, batch_size=4, cache="memory")
pixels = np.bincount(np.concatenate([batch["mask"].ravel() for batch in training.epoch()]))
weights = class_weights.weights(("inverse",), pixels)
print(
    f"pixels of the rare class: {pixels[1] / pixels.sum():.1%}; inverse weights: {weights[0]:.3f}, {weights[1]:.3f}\n"
)

weighted = partial(F.cross_entropy, weight=torch.tensor(weights)), partial(losses.cross_entropy, class_weights=weights)
pairs_of_losses = {
    "cross-entropy": (F.cross_entropy, losses.cross_entropy),
    "+ class weights": weighted,
    "Dice": (torch_dice, losses.dice),
    "focal": (torch_focal, losses.focal),
}
logits = np.random.default_rng(1).normal(size=(4, 64, 64, 2)).astype(np.float32)
batch, rare_share = next(training.epoch()), {}
for name, (torch_loss, jax_loss) in pairs_of_losses.items():
    z, masks = torch.from_numpy(logits).permute(0, 3, 1, 2), tensors(batch)[1]
    theirs, ours = float(torch_loss(z, masks)), float(jax_loss(logits, batch["mask"]))
    rare_share[name] = []
    for margin in (0.0, math.log(99) / 2):  # a network that knows nothing, and one that is 99 % sure of background
        gradient = jax.grad(jax_loss)(np.broadcast_to(np.float32([margin, -margin]), logits.shape), batch["mask"])
        size = np.abs(np.asarray(gradient)).sum(-1)
        rare_share[name].append(100 * size[batch["mask"] == 1].sum() / size.sum())
    first, later = rare_share[name]
    share = f"gradient from the rare class {first:4.1f} %, later {later:4.1f} %"
    print(f"{name:16} PyTorch {theirs:.6f}  jaxseg {ours:.6f}  {share}")
    assert abs(theirs - ours) < 1e-5 * theirs

# %% [markdown]
# Now train with each, from the same weights. Left: at first, plain cross-entropy leaves the rare class less than one percent of the
# gradient. Inverse weights give it half at once. Focal loss turns to it when the network has become sure of background. Right: who has
# found it after a short training. High recall with low precision means too many false alarms. Dice counts overlap, as IoU does.
#
# 再用每个损失从同样的权重训练。左图：普通交叉熵一开始只把不到百分之一的梯度给稀有类别；反比权重立刻给它一半；focal 要等网络对背景有把握之后才把重点转过来。右图：短训练之后谁找到了它。召回率高而精确率低，说明误报太多。Dice 直接计算重叠，和 IoU 衡量的东西接近。

# %%
found = {}
for name, sides in pairs_of_losses.items():
    for framework, fit, loss in zip(("PyTorch", "jaxseg"), (fit_torch, fit_jax), sides):
        history = fit((8, 16), loss, training, validation, epochs=15, rate=5e-3)
        found[name, framework] = {score: history[-1][1][score][1] for score in ("iou", "precision", "recall")}

print(f"{'rare class, validation':28} {'IoU':>6} {'precision':>10} {'recall':>7}")
for (name, framework), score in found.items():
    print(f"{name + ', ' + framework:28} {score['iou']:6.3f} {score['precision']:10.3f} {score['recall']:7.3f}")

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
names, at = list(pairs_of_losses), np.arange(len(pairs_of_losses))
for shift, moment, color in ((-0.18, "at the start", "#bdbdbd"), (0.18, "sure of background", "#6e6e6e")):
    values = [rare_share[name][int(shift > 0)] for name in names]
    bars = axes[0].barh(at + shift, values, 0.32, color=color, label=moment)
    axes[0].bar_label(bars, fmt="%.1f %%", padding=3, fontsize=8)
axes[0].set(title="Share of the gradient from the rare class", xlabel="percent", xlim=(0, 118))
axes[0].legend(loc="upper right", fontsize=9)
for offset, framework, color in ((-0.18, "PyTorch", TORCH), (0.18, "jaxseg", JAX)):
    axes[1].barh(at + offset, [found[name, framework]["iou"] for name in names], 0.32, color=color, label=framework)
axes[1].set(title="IoU of the rare class after 120 steps", xlabel="IoU, validation", xlim=(0, 1.0))
axes[1].legend(loc="upper right")
for axis in axes:
    axis.set_yticks(at, names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# ## 7. All of it in a command line · 一条命令全部完成
#
# | the article · 原文 | flag · 参数 |
# |---|---|
# | mask // 255 · 标签除以 255 | values are found by themselves; `--binarize 255` forces the rule · 自动识别，也可强制 |
# | Kaiming in nested modules · 嵌套模块的初始化 | `--init article`, `xavier_normal`, ... |
# | warm-up and "cosine" · 预热加“余弦” | `--schedule article` or `warmup_cosine`; `python -m jaxseg.schedules` draws it |
# | iterators · 迭代器 | `--cache none`, `memory`, `disk`, `device` |
# | curves · 曲线 | `curves.png`, and `tensorboard --logdir runs` |
# | rare classes · 稀有类别 | `--class-weights auto`, `--loss dice_ce`, `focal`, ... |
# | normalization · 归一化 | `--normalize unit`, `dataset`, `imagenet` |
#
# `--preset article` sets the whole recipe. Here is a short run with Dice plus cross-entropy, flips and quarter turns.
#
# `--preset article` 一次设好原文的全部配置。下面用 Dice 加交叉熵、翻转和旋转增强做一次短训练。

# %%
command("jaxseg.train --data fields --out runs/lesson -e 10 -l 5e-3 --widths 8 16 32 --loss dice_ce", skip=1, lines=30)
print("\nruns/lesson:", *sorted(path.name for path in Path("runs/lesson").iterdir()))

# %%
for name in ("curves.png", "samples/predictions.png"):
    picture = cv2.imread(f"runs/lesson/{name}")
    size = (900, round(900 * picture.shape[0] / picture.shape[1]))
    display(Image(cv2.imencode(".png", cv2.resize(picture, size, interpolation=cv2.INTER_AREA))[1].tobytes()))

# %% [markdown]
# ## 8. How we know that the two agree · 怎样证明两边一致
#
# In section 5 the curves drifted apart. Training amplifies rounding, so in float32 a small mistake looks like noise. In float64 the
# noise is nine decades smaller. Here are four pairs of runs of 40 steps:
#
# - float32: jaxseg and PyTorch
# - float32: PyTorch and *itself*, with another memory layout
# - float64: jaxseg and PyTorch
# - float64: the same with a mistake in jaxseg, Adam's `eps` of 1e-7 (Keras' default) instead of 1e-8
#
# 第 5 节里曲线后来分开了。训练会放大舍入误差，所以在 float32 下，小错误看起来就像噪声；float64 的噪声小九个数量级。这里比较四对训练，各 40 步：jaxseg 与 PyTorch（float32）；PyTorch 与它自己，只换内存布局（float32）；jaxseg 与 PyTorch（float64）；最后一对同上，但在 jaxseg 里故意放一个小错误，把 Adam 的 `eps` 从 1e-8 改成 1e-7（Keras 的默认值）。

# %%
batches = [batch for epoch in range(14) for batch in few.epoch(epoch)][:40]


def torch_losses(dtype, layout=torch.contiguous_format):
    model = TorchUNet(widths=(8, 16), conv_bias=False)
    model.load_state_dict(initial_weights((8, 16)))
    model.to(dtype=dtype, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    for images, masks in map(tensors, batches):
        optimizer.zero_grad()
        value = F.cross_entropy(model(images.to(dtype, memory_format=layout)), masks)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return np.array(values)


def scale_to(dtype, image):
    return normalize(image).astype(dtype)


def jax_losses(dtype, eps=1e-8):
    with jax.enable_x64(dtype == jnp.float64):
        model = UNet((8, 16), conv_bias=False, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        from_torch(model, initial_weights((8, 16)))
        optimizer = nnx.Optimizer(model, optax.adam(5e-3, eps=eps), wrt=nnx.Param)
        step = nnx.jit(partial(train_step, normalize=partial(scale_to, dtype), schedule=optax.constant_schedule(5e-3)))
        return np.array([float(step(model, optimizer, batch)["loss"]) for batch in batches])


single, double = torch_losses(torch.float32), torch_losses(torch.float64)
distances = {
    "float32: jaxseg and PyTorch": (jax_losses(jnp.float32) - single, JAX, "-"),
    "float32: PyTorch and itself": (torch_losses(torch.float32, torch.channels_last) - single, TORCH, "-"),
    "float64: with the mistake": (jax_losses(jnp.float64, eps=1e-7) - double, "#444444", "--"),
    "float64: jaxseg and PyTorch": (jax_losses(jnp.float64) - double, JAX, "--"),
}
figure, axis = plt.subplots(figsize=(7.5, 3.8))
for name, (difference, color, line) in distances.items():
    size = np.maximum.accumulate(np.abs(difference))
    axis.semilogy(range(1, 41), np.maximum(size, 1e-17), line, color=color, lw=1.6, label=name)
    print(f"{name:29} largest difference of the loss: {size[-1]:.1e}")
axis.set(title="Difference of the loss, largest so far", xlabel="step", ylabel="|difference|", ylim=(1e-17, 30))
axis.legend(loc="upper left", ncols=2, fontsize=9)
plt.show()

# %% [markdown]
# In float32 jaxseg is about as far from PyTorch as PyTorch is from itself, and the mistake could hide there. In float64 it cannot.
# `python -m parity` compares every layer, loss, optimizer, schedule and initializer in this way, with a gate for each figure. It also
# puts known mistakes into jaxseg, one at a time, and fails if one goes unseen.
#
# float32 下，jaxseg 与 PyTorch 的差别和 PyTorch 与它自己的差别一样大，错误可以藏在里面；float64 下就藏不住了。`python -m parity` 正是这样检查每一种层、损失、优化器、学习率和初始化，每个数都有门限。它还把已知的错误逐个放进 jaxseg，漏掉任何一个都算失败。

# %%
command("parity --quick --only schedule --out parity-report", skip=1, lines=12)
report = json.loads(Path("parity-report/report.json").read_text(encoding="utf-8"))
rows = [row for question in report["questions"] for row in question["rows"]]
print(f"... {sum(row['passed'] for row in rows)} of {len(rows)} rows pass")
assert report["passed"]

# %% [markdown]
# **Where to go next.** `python -m jaxseg.check FOLDER` on your own data, then the command that it prints. `jaxseg/learn/step.py` is the
# training step on one page. `python -m parity.race` trains both frameworks side by side.
#
# **下一步。** 先对自己的数据运行 `python -m jaxseg.check FOLDER`，再运行它给出的命令。训练步的全部代码在 `jaxseg/learn/step.py`，一页就能读完。`python -m parity.race` 让两个框架并排训练。

# %%
os.chdir(home)
work.cleanup()
