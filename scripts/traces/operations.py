"""What the operations of a compiled program are, read from its HLO text: kind, shapes, arithmetic, and source line."""

import math
import re
from collections.abc import Iterable
from pathlib import PureWindowsPath
from typing import NamedTuple

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = (
    f"convolution, {what}" for what in ("forward", "input gradient", "weight gradient")
)
PRODUCT, SCATTER, SORT, REDUCTION, ELEMENTWISE, MOVE = (
    "matrix product", "scatter", "sort, gather", "reduction", "elementwise", "copy, transpose"
)  # fmt: skip
CONTAINER = "container"
"""Loops and branches: what is inside them has operations of its own."""

MOVES = frozenset(
    """bitcast bitcast-convert broadcast concatenate constant convert copy copy-done copy-start dynamic-slice
    dynamic-update-slice get-tuple-element iota pad parameter reshape reverse slice transpose tuple""".split()  # noqa: SIM905
)
CUDNN = {
    "__cudnn$convBackwardInput": INPUT_GRADIENT,
    "__cudnn$convBackwardFilter": WEIGHT_GRADIENT,
}  # any other __cudnn$conv... is a forward one
KERNELS = {
    SCATTER: "scatter",
    WEIGHT_GRADIENT: "wgrad|backwardfilter",
    INPUT_GRADIENT: "dgrad|backwarddata",
    FORWARD: "fprop|conv",
    PRODUCT: "gemm|nvjet|cutlass|matmul",
    SORT: "sort|gather",
    MOVE: "copy|memset|transpose|nchwtonhwc|nhwctonchw|concatenate",
    REDUCTION: "reduce",
}
"""Kind -> pattern, tried in this order, for kernels of which no operation is known."""

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str
    """Operands and attributes, as the text has them."""
    operands: tuple[str, ...]
    """Their types, as far as they are known."""


class Operation(NamedTuple):
    kind: str
    shapes: str
    """operands -> result, of the convolution or product in it; of others the result alone."""
    flops: int
    """Of convolutions and products, taps in the padding included; 0 for others."""
    source: str
    """file:line of the last of its instructions for which that is known, or nothing."""


def operations(hlo: str) -> dict[str, Operation]:
    """Name -> what it is, for every instruction of the text of a compiled module."""
    computations, lines = parse(hlo), _source_lines(hlo)
    return {
        instruction.name: _operation(instruction, computations, lines)
        for instructions in computations.values()
        for instruction in instructions
    }


def parse(hlo: str) -> dict[str, list[Instruction]]:
    """Computation -> its instructions."""
    computations, types, current = {}, {}, None
    for line in hlo.splitlines():
        if found := INSTRUCTION.match(line):
            name, kind, opcode, rest = found.groups()
            operands = tuple(types.get(operand, "") for operand in re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
            types[name] = kind
            computations[current].append(Instruction(name, kind, opcode, rest, operands))
        elif found := COMPUTATION.match(line):
            current = found[1]
            computations[current] = []
    return computations


def arrays(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    """Type and sizes of the arrays in a type of HLO text, which may be a tuple."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", kind)
    return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in found]


def kernel_kind(name: str) -> str:
    """The kind of a kernel by its name alone."""
    return next((kind for kind, pattern in KERNELS.items() if re.search(pattern, name.lower())), ELEMENTWISE)


def _operation(instruction: Instruction, computations: dict, lines: dict[str, str]) -> Operation:
    inside = list(_inside(instruction, computations))
    sources = [lines.get(_attribute(part, "stack_frame_id=(\\d+)"), "") for part in (*inside, instruction)]
    source = next(filter(None, reversed(sources)), "")
    if instruction.opcode in ("while", "conditional", "call"):
        return Operation(CONTAINER, _shape(instruction.type), 0, source)
    main = next(filter(_is_convolution, inside), None) or next((i for i in inside if i.opcode == "dot"), None)
    if main is None:
        return Operation(_plain_kind(inside), _shape(instruction.type), 0, source)
    kind = _direction(main, instruction) if _is_convolution(main) else PRODUCT
    shapes = f"{', '.join(map(_shape, main.operands[:2]))} -> {_shape(main.type)}"
    return Operation(kind, shapes, _flops(main, kind), source)


def _inside(instruction: Instruction, computations: dict) -> Iterable[Instruction]:
    """The instructions of a fusion, or the one itself."""
    called = _attribute(instruction, r"calls=%?([\w.\-]+)")
    if instruction.opcode != "fusion" or called not in computations:
        yield instruction
        return
    for part in computations[called]:
        yield from _inside(part, computations)


def _attribute(instruction: Instruction, pattern: str) -> str:
    found = re.search(pattern, instruction.rest)
    return found[1] if found else ""


def _is_convolution(instruction: Instruction) -> bool:
    return instruction.opcode == "convolution" or "__cudnn$conv" in instruction.rest


def _direction(convolution: Instruction, whole: Instruction) -> str:
    """By jaxseg's functions where they are named; else, a weight gradient slides a window as large as the image and
    gives one as small as a kernel.
    """
    if target := _attribute(convolution, r'custom_call_target="(__cudnn\$conv\w+)"'):
        return CUDNN.get(target, FORWARD)
    names = convolution.rest + whole.rest
    if "_kernel_gradient" in names:
        return WEIGHT_GRADIENT
    window = _attribute(convolution, r"window=\{size=(\d+(?:x\d+)*)")
    result = _attribute(convolution, r"dim_labels=\w+->(\w+)")
    places = [size for size, label in zip(_sizes(convolution.type), result) if label.isdigit()]
    if "_convolved" not in names and math.prod(map(int, window.split("x"))) > math.prod(places):
        return WEIGHT_GRADIENT
    return INPUT_GRADIENT if "transpose(jvp" in names else FORWARD


def _plain_kind(inside: Iterable[Instruction]) -> str:
    opcodes = {instruction.opcode for instruction in inside}
    targets = " ".join(instruction.rest for instruction in inside if instruction.opcode == "custom-call")
    for kind, wanted in {
        SCATTER: {"scatter", "select-and-scatter"},
        SORT: {"sort", "gather", "topk"},
        REDUCTION: {"reduce", "reduce-window"},
    }.items():
        if opcodes & wanted:
            return kind
    if targets:
        return kernel_kind(targets)
    return MOVE if opcodes <= MOVES else ELEMENTWISE


def _flops(main: Instruction, kind: str) -> int:
    left, right, result = *map(_sizes, main.operands[:2]), _sizes(main.type)
    if kind == PRODUCT:
        dims = _attribute(main, r"lhs_contracting_dims=\{([\d,]*)\}")
        return 2 * math.prod(result) * math.prod(left[int(dim)] for dim in dims.split(",") if dim)
    if main.opcode == "custom-call":  # its labels are those of the convolution of which it is a gradient
        left, right, result = {
            INPUT_GRADIENT: (result, right, left),
            WEIGHT_GRADIENT: (left, result, right),
        }.get(kind, (left, right, result))
    labels = _attribute(main, r"dim_labels=\w+_(\w+)->")
    return 2 * math.prod(result) * math.prod(right) // right[labels.index("o")] if right else 0


def _shape(kind: str) -> str:
    """f32[5,64,64,16]: the first array of a type, without its layout."""
    found = re.search(r"\w+\[[\d,]*\]", kind)
    return found[0] if found else kind


def _sizes(kind: str) -> tuple[int, ...]:
    found = arrays(kind)
    return found[0][1] if found else ()


def _source_lines(hlo: str) -> dict[str, str]:
    """Frame number -> file:line, from the tables at the head of the text; empty if there are none."""

    def table(name: str) -> dict[str, str]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", hlo, re.MULTILINE)
        return dict(line.split(" ", 1) for line in found[1].splitlines()) if found else {}

    files, locations = table("FileNames"), {}
    for number, text in table("FileLocations").items():
        found = re.search(r"file_name_id=(\d+) .*?\bline=(\d+)", text)
        file = PureWindowsPath(files[found[1]].strip('"')).name  # splits at slashes of either kind
        locations[number] = f"{file}:{found[2]}"
    frames = table("StackFrames").items()
    return {number: locations[re.search(r"file_location_id=(\d+)", text)[1]] for number, text in frames}
