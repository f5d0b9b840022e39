"""Least time of a compiled program on a GPU by its peak figures: the roofline (Williams, Waterman, Patterson 2009)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Peak:
    """A GPU: FLOP per second of dense products in bfloat16 and TF32, and bytes per second of its memory."""

    bf16: float
    tf32: float
    memory: float

    def seconds(self, flop: float, traffic: float, precision: str) -> float:
        """Least time of a program with `flop`, and `traffic` bytes from and to memory; `precision` as in `Task`."""
        return max(flop / {"bf16": self.bf16, "f32": self.tf32}[precision], traffic / self.memory)


PEAKS = {
    "H200": Peak(989e12, 494e12, 4.8e12),
    "H100 PCIe": Peak(756e12, 378e12, 2.0e12),
    "H100": Peak(989e12, 494e12, 3.35e12),
    "A100-SXM4-40GB": Peak(312e12, 156e12, 1.555e12),
    "A100-SXM4-80GB": Peak(312e12, 156e12, 2.039e12),
    "A100 80GB PCIe": Peak(312e12, 156e12, 1.935e12),
    "L40S": Peak(362e12, 183e12, 0.864e12),
    "L4": Peak(121e12, 60e12, 0.3e12),
    "RTX 4090": Peak(165e12, 82.6e12, 1.008e12),
}
"""Figures of NVIDIA's data sheets, without sparsity, by a part of JAX's `device_kind`; the first that fits counts."""


def peak(device: str) -> Peak | None:
    """Peak figures of a device by JAX's name of it; None if it is not known.

    >>> peak("NVIDIA H100 80GB HBM3").memory
    3350000000000.0
    """
    return next((known for name, known in PEAKS.items() if name in device), None)


def share(facts: dict, precision: str, seconds: float) -> float | None:
    """Share of the roofline that a step reaches in `seconds`; None if the device or its work is not known.

    - `facts`: "device", "flop" and "bytes" of the step, as XLA counts them
    """
    known = peak(facts.get("device", ""))
    if known is None or not facts.get("flop"):
        return None
    return known.seconds(facts["flop"], facts["bytes"], precision) / seconds
