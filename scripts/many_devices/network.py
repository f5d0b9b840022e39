"""Time of all-reduces on a network of GPUs, and of a training step whose batch is divided over them.

Every sum takes a latency, which does not depend on its size, and a transfer, which is proportional to it.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Network:
    """Nodes of `node` devices each. Seconds, and bytes per second and device in one direction.

    - `start`: seconds of a sum besides its hops
    - `near_hop`, `far_hop`: seconds of a hop within a node, and between nodes
    - `slower`: factor on `near_hop` where there are several nodes
    - `near`, `far`: bytes per second within a node, and between nodes

    Latency is that of a tree, as NCCL estimates it: a chain through each node, a binary tree of the nodes, up and down.
    (NVIDIA/nccl, src/graph/tuning.cc, tree with the protocol LL.) Transfer is in three stages, one after the other: a
    reduce-scatter within each node, an all-reduce of each device's share between nodes, an all-gather within each
    node. A ring of n sends 2 (n - 1) / n of the bytes, see doc/PERFORMANCE.md of NVIDIA/nccl-tests.
    """

    node: int
    start: float
    near_hop: float
    far_hop: float
    slower: float
    near: float
    far: float

    def shape(self, devices: int) -> tuple[int, int]:
        """Devices in a node, and nodes."""
        return min(devices, self.node), math.ceil(devices / self.node)

    def latency(self, devices: int) -> float:
        """Seconds of a sum of a few bytes over `devices`."""
        each, nodes = self.shape(devices)
        if devices == 1:
            return 0.0
        hop = self.near_hop * (self.slower if nodes > 1 else 1)
        return self.start + 2 * ((each - 1) * hop + math.log2(nodes) * self.far_hop)

    def transfer(self, size: float, devices: int) -> float:
        """Seconds that `size` bytes of a sum take besides the latency."""
        each, nodes = self.shape(devices)
        within = ring(each) * size / self.near
        return within + ring(nodes) * size / each / self.far

    def seconds(self, size: float, devices: int) -> float:
        """Seconds of a sum of `size` bytes.

        >>> HOPPER.seconds(4, 1)
        0.0
        """
        return self.latency(devices) + self.transfer(size, devices)


def ring(devices: int) -> float:
    """Share of the bytes that each device of a ring sends in an all-reduce."""
    return 2 * (devices - 1) / devices


HOPPER = Network(8, start=14e-6, near_hop=0.6e-6, far_hop=5e-6, slower=1.8, near=370e9, far=47e9)
"""Nodes of eight H100 or H200, with NVLink and a 400 Gb/s InfiniBand port for each.

- `near_hop`, `far_hop`, `slower`: NCCL's own, src/graph/tuning.cc
- `start`: 14 us, where NCCL has 6.8 for LL and 14 for LL128; eight H100 need 20 to 25 us from 4 bytes to 1 MiB
  (marin-community/marin, issue 6736)
- `near`: 370 of NVLink's 450 GB/s in each direction reach programs (NVIDIA/nccl-tests, issue 212; NVIDIA/nccl, issue
  1442). The switches' own reduction (NVLink SHARP) would give a third more
- `far`: 46 to 48 GB/s of a port of 400 Gb/s (NVIDIA/nccl-tests, issue 290)
"""

PUBLISHED = (
    (8, 4, 22.5e-6, "8 H100, marin-community/marin issue 6736: 20 to 25 us"),
    (16, 8, 47.6e-6, "2 x 8 H20 with 400 Gb/s, NVIDIA/nccl issue 1244"),
    (256, 8, 63.0e-6, "32 x 8 A100 with 4 x 200 Gb/s, NVIDIA/nccl issue 652"),
    (16, 33_554_432, 298.5e-6, "2 x 8 H20 with 400 Gb/s, NVIDIA/nccl issue 1244"),
    (16, 134_217_728, 1108e-6, "2 x 8 H20 with 400 Gb/s, NVIDIA/nccl issue 1244"),
    (16, 268_435_456, 2055e-6, "2 x 8 H20 with 400 Gb/s, NVIDIA/nccl issue 1244"),
)
"""Devices, bytes, seconds and source of all-reduces that others measured."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Sums over devices in a training step.

    - `rounds`: bytes of the sums on which the step waits, one after the other: each needs the results of those before
    - `gradient`: bytes that are summed at the end: the gradient, and some numbers to report
    """

    rounds: tuple[int, ...]
    gradient: int


BUCKET = 30 * 2**20
"""Most bytes that XLA combines in an all-reduce: kDefaultAllReduceCombineThreshold, xla/service/collective_utils.h."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Seconds of a step on several devices: computation, sums in between, and the gradient's as far as it waits."""

    compute: float
    between: float
    gradient: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.between + self.gradient

    @property
    def efficiency(self) -> float:
        """Time of a step on one device over that on several, each with as many images."""
        return self.compute / self.total


def step(compute: float, traffic: Traffic, network: Network, devices: int, hidden: float = 0.0) -> Parts:
    """Time of a training step on `devices`, each with as many images as one has in `compute` seconds.

    - `hidden`: share of `compute` beside which the gradient is summed; 0: it is summed after the backward pass
    """
    between = sum(network.seconds(size, devices) for size in traffic.rounds)
    buckets = math.ceil(traffic.gradient / BUCKET)
    gradient = buckets * network.latency(devices) + network.transfer(traffic.gradient, devices)
    return Parts(compute, between, max(0.0, gradient - hidden * compute))
