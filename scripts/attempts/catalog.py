"""What is tried, the most promising first.

Predictions are for base 64 at batch 16, whose step takes 12 to 14 ms, and those of small ones for base 16 at batch 5.
"by bytes" are what --target reckons for an H200; it knows nothing of how well a kernel does its work.
"""

from attempts.spec import Attempt

CAPTURED = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"
"""XLA's default."""


def flags(**values: object) -> dict:
    """As a change of `Spec`."""
    return {"flags": " ".join(f"--{name}={value}" for name, value in values.items())}


def rewrite(*names: str) -> dict:
    return {"rewrites": names}


GRAPHS = flags(xla_gpu_enable_command_buffer=CAPTURED, xla_gpu_graph_min_graph_size=5)

ATTEMPTS = (
    Attempt(
        "command buffers with convolutions", "up to 2 times: 250 to 400 launches", GRAPHS, present=True, small=True
    ),
    Attempt("no waiting between steps", "2 times", {"drive": "waiting"}, present=True, small=True),
    Attempt("split concatenation", "4 % by bytes; narrower products", rewrite("split concatenation")),
    Attempt(
        "products beside one another", "3 % by bytes: two copies of each gradient", rewrite("einsum up"), present=True
    ),
    Attempt("BatchNorm with ReLU", "6 % by bytes: a gradient written and read", rewrite("norm and relu"), present=True),
    Attempt("kernels' gradients in order", "3 % by bytes: Adam's copies", rewrite("cuDNN's order"), present=True),
    Attempt("argmax by comparison", "0 by bytes; 1 % by a slow kernel", rewrite("plain argmax"), present=True),
    Attempt("input padded to 8 channels", "0 by bytes; 0.7 % measured", rewrite("unpadded input"), present=True),
    Attempt("pooling by comparison", "3.5 % by bytes; up to 8 % by atomics", rewrite("plain pooling"), present=True),
    Attempt(
        "cross-entropy by comparison", "0 by bytes; up to 5 % by atomics", rewrite("plain cross-entropy"), present=True
    ),
    Attempt(
        "up-convolution as a product", "-2 % by bytes; several ms by slow kernels", rewrite("dilated up"), present=True
    ),
    Attempt("command buffers with convolutions, large", "0 to 10 %, hidden behind the work", GRAPHS, present=True),
    Attempt(
        "independent kernels beside one another",
        "up to 4 %, up to 20 % of a small step: 320 kernels of 2 us",
        flags(xla_gpu_command_buffer_scheduling_mode="CONCURRENT"),
        small=True,
    ),
    Attempt(
        "BatchNorm's sums in pairs",
        "0.5 %, 2 % of a small step: 36 of 482 kernels",
        rewrite("sums together"),
        small=True,
    ),
    Attempt(
        "norm of the gradients as one sum",
        "0.3 %, 1 % of a small step: 19 of 482 kernels",
        rewrite("norm together"),
        small=True,
    ),
    Attempt("cuDNN's fusion path", "-5 to 5 %", flags(xla_gpu_experimental_enable_conv_fusion="true")),
    Attempt("two-pass variance, not corrected", "-2.5 %: its gradient sums once more", rewrite("two-pass variance")),
    Attempt("one-pass variance (not exact)", "2.6 %: a pass forwards", rewrite("one-pass variance")),
    Attempt("head as a product in float32", "0 to 2 %", rewrite("product head")),
    Attempt("logits padded to 8", "0 to 2 %", rewrite("padded logits")),
    Attempt("no bias before BatchNorm", "0 to 2 %: sums of gradients", {"conv_bias": False}),
    Attempt("float16", "0 %: the same rate; XLA pads its channels, not bfloat16's", {"precision": "f16"}),
    Attempt("bfloat16", "1.5 to 2.6 times TF32", {"precision": "f32"}, present=True),
    Attempt("8 steps a dispatch", "up to 2 times if a step is under 2 ms", {"drive": "scanned"}, small=True),
    Attempt("no waiting between steps, large", "5 to 10 %", {"drive": "waiting"}, present=True),
    Attempt(
        "bytes to the device, not floats",
        "0.2 ms of copying, and the conversion on the host",
        {"drive": "floats sent"},
        present=True,
        both={"drive": "bytes sent"},
    ),
    Attempt("one vector of parameters", "-10 to 10 %: 43 launches of 601 go", rewrite("flattened update"), small=True),
    Attempt("command buffers", "0 to 3 %", flags(xla_gpu_enable_command_buffer=""), present=True, small=True),
    Attempt(
        "command buffers of any size", "8 to 11 %", flags(xla_gpu_graph_min_graph_size=5), present=True, small=True
    ),
    Attempt("donated buffers", "under 1 %; 0.37 GB less", rewrite("undonated"), present=True),
    Attempt("autotuning at level 4, not 2", "0 %", flags(xla_gpu_autotune_level=2), present=True),
    Attempt("autotuning", "2 times and more", flags(xla_gpu_autotune_level=0), present=True),
    Attempt("matrix products by Triton", "0 %", flags(xla_gpu_enable_triton_gemm="false"), present=True),
    Attempt("remat", "-25 %: a third forward pass; less memory", {"remat": True}),
)
