"""What ranks send each other in an optimizer step and what offloading moves, and how long that takes.

Bytes follow from what is divided and how often it is gathered. Seconds are a range: links are given by what
their slowest and their fastest use was seen to attain, and nobody knows how much is hidden behind computing,
from nothing to everything. Knows nothing of how a tape is recorded, and of latency: small messages take
longer.

A collective is counted as rings do it: of a tensor, each rank sends (P - 1) / P where it is gathered or
scattered, and twice that where it is reduced for all (Patarasuk and Yuan, 2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from .gathering import FIRST, LAST, Gathering, Unit
from .gpus import Gpu
from .ranks import Model
from .shard_plan import Offload, Scheme, ShardPlan
from .speed import SpeedEstimate
from .tape import Phase, Tape
from .zero import Zero3

GIGA = 1e9

GPUS_A_NODE = 8
"""More are taken for several nodes."""


class Rates(NamedTuple):
    """Bytes a second in one direction: the least and the most that NCCL is to be expected to attain."""

    low: float
    high: float


NVLINK_BYTES_PER_S = {
    "V100 16GB": 150 * GIGA,
    "V100 32GB": 150 * GIGA,
    "A100 SXM 40GB": 300 * GIGA,
    "A100 SXM 80GB": 300 * GIGA,
    "H100 SXM 80GB": 450 * GIGA,
    "H200 141GB": 450 * GIGA,
    "B200 180GB": 900 * GIGA,
    "GB200 186GB": 900 * GIGA,
    "MI250X 64GB": 250 * GIGA,
    "MI300X 192GB": 448 * GIGA,
    "MI325X 256GB": 448 * GIGA,
}
"""Name in the catalogue → what a GPU's links to others of its node carry in one direction: half of what data
sheets give for both (NVIDIA's of the V100, A100, H100, H200, HGX B200 and GB200: 300, 600, 900, 900, 1800 and
1800 GB/s; AMD's of the MI250X, MI300X and MI325X: 500, 896 and 896 GB/s of Infinity Fabric). Bridges between
two boards are not reckoned with."""

NVLINK_SHARES = (0.67, 0.82)
"""That NCCL attains: 200 of an A100's 300 GB/s (nccl-tests#149), 370 of an H100's 450, the protocol taking a
fifth (its author in nccl-tests#212)."""

PCIE_GENERATIONS = {"Pascal": 3, "Volta": 3, "Turing": 3, "Hopper": 5, "Blackwell": 5, "CDNA3": 5}
"""Architecture → generation; the others of the catalogue have the fourth."""

PCIE_BYTES_PER_S = {3: 15.75 * GIGA, 4: 31.5 * GIGA, 5: 63.0 * GIGA}
"""Of 16 lanes in one direction: 8, 16 and 32 GT/s a lane, of which 128 of 130 bits are data (PCI Express Base
Specification)."""

PCIE_SHARES = (0.32, 0.76)
"""Of 16 lanes of the fourth generation NCCL reckons with 24 GB/s below one host bridge, and with 10 from one
processor to another (its topology in nccl-tests#307). Taken for the way to the host's memory, too."""

NETWORK = Rates(12.5 * GIGA, 400 * GIGA)
"""Of a node: from one port of 100 Gb/s to eight of 400 Gb/s, as NVIDIA's DGX H100 has (its data sheet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends in an optimizer step, all its micro-batches."""

    between_ranks: int = 0
    with_host: int = 0
    """In both directions together, because of offloading."""


NO_TRAFFIC = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicationTime:
    """Seconds of an optimizer step if nothing else is done meanwhile."""

    low_s: float
    high_s: float

    @property
    def mid_s(self) -> float:
        """In between, as rates are."""
        return math.sqrt(self.low_s * self.high_s)


def traffic_of(tape: Tape, plan: ShardPlan | None) -> Traffic:
    """What a rank sends in the step of this tape.

    Weights that stay gathered from the forward to the backward pass are gathered once. DDP and FSDP reduce
    once a step, DeepSpeed's stages 2 and 3 with every micro-batch.

    Args:
        tape: of one GPU that has the whole model, at a rank's micro-batch.
        plan: None is one process that has all to itself.
    """
    if plan is None or plan.scheme is Scheme.NONE:
        return NO_TRAFFIC
    counted = _Counted(tape, plan)
    between = 0.0 if plan.ranks == 1 else counted.between_ranks() * (plan.ranks - 1) / plan.ranks
    return Traffic(between_ranks=round(between), with_host=round(counted.with_host()))


class _Counted:
    """Whole tensors that collectives go through in a step, and what is copied to the host and back."""

    def __init__(self, tape: Tape, plan: ShardPlan) -> None:
        self.plan, self.model = plan, Model(tape, plan)
        phases = [phase for phase, _ in groupby(tape.events, key=lambda event: event.phase)]
        self.micro_batches = max(1, phases.count(Phase.BACKWARD))
        self.trained = sum(self.model.trained_sizes)
        """In the dtype that is computed in, as gradients and updated weights are sent."""
        self.gathered = self.persistent = 0
        """Bytes of weights that a micro-batch gathers, each as often as it does; that an update does."""
        if plan.scheme in (Scheme.ZERO_3, Scheme.FSDP):
            units = Zero3(tape, plan) if plan.scheme is Scheme.ZERO_3 else Gathering(tape, plan)
            self.gathered = self._gathered(units)
            divided = self.model.divided.values()
            self.persistent = sum(units.whole_bytes(event) for event in divided if units.is_whole(event))

    def between_ranks(self) -> float:
        """Bytes of whole tensors, those that are reduced for all twice."""
        match self.plan.scheme:
            case Scheme.DDP:
                return 2 * self.trained
            case Scheme.ZERO_1:
                return 2 * self.trained + self.trained  # reduced (allreduce_and_scatter), gathered
            case Scheme.ZERO_2:
                return 2 * self.trained * self.micro_batches + self.trained
            case Scheme.ZERO_3:
                return (self.gathered + self.trained) * self.micro_batches + self.persistent
            case _:
                return self.gathered * self.micro_batches + self.trained

    def with_host(self) -> float:
        """Bytes of one rank: gradients there and weights back; while gradients add up there, both ways."""
        plan, share = self.plan, self.trained / self.plan.ranks
        if plan.offload is Offload.NONE:
            return 0.0
        if plan.scheme is Scheme.FSDP:
            return self.gathered * self.micro_batches / plan.ranks + share
        accumulated = 2 * share * (self.micro_batches - 1)
        weights = share
        if plan.offload is Offload.ALL:
            weights = self.gathered * self.micro_batches / plan.ranks
        return share + accumulated + weights

    def _gathered(self, units: Gathering) -> int:
        """What is outside of layers stays gathered, or is used in one pass only."""
        times = 3 if self.plan.recomputes_units and not self.plan.gathers_twice else 2
        outside: list[Unit] = [FIRST] if units.is_tied else [FIRST, LAST]
        return sum(
            units.unit_bytes(unit) * (1 if unit in outside or unit in units.staying else times)
            for unit in (*outside, *units.layers)
        )


def rates_between(gpu: Gpu, gpus: int) -> Rates:
    """Of each rank to the next, of so many GPUs alike: within a node, or over the network between nodes."""
    line = NVLINK_BYTES_PER_S.get(gpu.name)
    pcie = PCIE_BYTES_PER_S[PCIE_GENERATIONS.get(gpu.architecture, 4)]
    within = _shares(pcie, PCIE_SHARES) if line is None else _shares(line, NVLINK_SHARES)
    if gpus <= GPUS_A_NODE:
        return within
    return Rates(min(within.low, NETWORK.low), min(within.high, NETWORK.high))


def rates_to_host(gpu: Gpu) -> Rates:
    """Between a GPU and pinned memory of its host."""
    return _shares(PCIE_BYTES_PER_S[PCIE_GENERATIONS.get(gpu.architecture, 4)], PCIE_SHARES)


def time_of(traffic: Traffic, gpu: Gpu, gpus: int) -> CommunicationTime:
    """How long it takes by itself on so many GPUs of a kind."""
    between, host = rates_between(gpu, gpus), rates_to_host(gpu)
    return CommunicationTime(
        low_s=traffic.between_ranks / between.high + traffic.with_host / host.high,
        high_s=traffic.between_ranks / between.low + traffic.with_host / host.low,
    )


def with_communication(speed: SpeedEstimate, tokens: float, talking: CommunicationTime) -> SpeedEstimate:
    """The speed of ranks that talk: at best all of it is hidden behind computing, at worst nothing.

    The middle hides half.

    Args:
        speed: of computing alone.
        tokens: of a step, as ``speed`` counts them.
    """
    slow_s, fast_s = tokens / speed.tokens_per_s_low, tokens / speed.tokens_per_s_high
    hidden_s = max(speed.step_s, talking.mid_s)
    step_s = (hidden_s + speed.step_s + talking.mid_s) / 2
    return replace(
        speed,
        tokens_per_s_low=tokens / (slow_s + talking.high_s),
        tokens_per_s_mid=tokens / step_s,
        tokens_per_s_high=tokens / max(fast_s, talking.low_s),
        step_s=step_s,
    )


def _shares(bytes_per_s: float, shares: tuple[float, float]) -> Rates:
    return Rates(bytes_per_s * shares[0], bytes_per_s * shares[1])
