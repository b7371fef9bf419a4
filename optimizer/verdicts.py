"""What a model takes of each method, once it has been tried: yes, no, or yes with something to know.

The words and the order of trying; how a try is made is for the runners. Knows nothing of torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from .domain import Method, Quantization


class Support(StrEnum):
    """Whether a model takes a method."""

    YES = "yes"
    PARTLY = "yes, but"
    """Not on every module that is meant for it, or not as it stands."""
    NO = "no"


class Proof(StrEnum):
    """How far a try went."""

    STEP = "step"
    """Built, one training step taken, and every adapter got a gradient."""
    BUILD = "build"
    """Built only: no input was at hand that the model takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A method as people name it."""

    name: str
    method: Method
    use_rslora: bool = False
    use_dora: bool = False
    quantization: Quantization = Quantization.NONE


VARIANTS = (
    Variant(name="lora", method=Method.LORA),
    Variant(name="dora", method=Method.LORA, use_dora=True),
    Variant(name="rslora", method=Method.LORA, use_rslora=True),
    Variant(name="adalora", method=Method.ADALORA),
    Variant(name="ia3", method=Method.IA3),
    Variant(name="oft", method=Method.OFT),
    Variant(name="miss", method=Method.MISS),
    Variant(name="lora-int8", method=Method.LORA, quantization=Quantization.INT8),
    Variant(name="lora-nf4", method=Method.LORA, quantization=Quantization.NF4),
    Variant(name="dora-nf4", method=Method.LORA, use_dora=True, quantization=Quantization.NF4),
    Variant(name="ia3-nf4", method=Method.IA3, quantization=Quantization.NF4),
    Variant(name="head", method=Method.HEAD),
    Variant(name="last-blocks", method=Method.LAST_BLOCKS),
    Variant(name="bitfit", method=Method.BITFIT),
    Variant(name="norms", method=Method.NORMS),
    Variant(name="full", method=Method.FULL),
)
"""What is tried, in the order in which it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What an adapter sits on, in PEFT's words."""

    modules: tuple[str, ...] = ()
    """Its ``target_modules``."""
    pattern: str | None = None
    """In their place, a regular expression, where no list tells modules apart."""
    parameters: tuple[str, ...] = ()
    """Its ``target_parameters``."""
    trained: tuple[str, ...] = ()
    """What is trained of the model itself, beside an adapter or in its place: new heads, blocks, biases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one model takes of one method."""

    name: str
    """Of the variant."""
    support: Support
    reason: str | None = None
    """Why not, or what to know; in sentences."""
    where: Where = field(default_factory=Where)
    """What is adapted; nothing where no adapter is involved."""
    trainable_params: int | None = None
    """At rank 8 where there is one."""
    proof: Proof | None = None
    """None where nothing could be built."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modules that were meant to be adapted → why they are not."""

    @property
    def supported(self) -> bool:
        """The method can be used, on some module at least."""
        return self.support is not Support.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one try ended."""

    error: str | None = None
    """What a library said, where it could not be built or run."""
    idle: Mapping[str, str] = field(default_factory=dict)
    """Those of the entries that were tried whose adapters got no gradient → why."""
    trainable_params: int | None = None
    proof: Proof | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Which entries can be had together, and what was found of the others."""

    kept: tuple[str, ...]
    left_out: Mapping[str, str]
    attempt: Attempt
    """Of those that were kept, together; where none was, the last that failed."""


NOT_REACHED = "no gradient reached an adapter there, in several passes with the inputs at hand"
READ_DIRECTLY = (
    "nn.MultiheadAttention reads its weight without calling it, so no gradient would reach an adapter"
)


def settle(
    entries: Sequence[str],
    attempt: Callable[[Sequence[str]], Attempt],
    *,
    kind_of: Callable[[str], Hashable],
) -> Settled:
    """Find the entries that a method can be put on together, by as few tries as most models need.

    All are tried at once. Where that fails, kinds are tried apart, then entries of a kind one by one, and
    what worked is tried together again.

    Args:
        entries: targets, each for one module or for several.
        attempt: tries some of them.
        kind_of: entries of one kind mostly work or fail alike.
    """
    result = attempt(entries)
    if result.error is None:
        if not result.idle:
            return Settled(kept=tuple(entries), left_out={}, attempt=result)
        kept = [entry for entry in entries if entry not in result.idle]
        again = attempt(kept) if kept else result
        return Settled(kept=tuple(kept), left_out=result.idle, attempt=again)
    if len(entries) == 1:
        return Settled(kept=(), left_out={entries[0]: result.error}, attempt=result)
    parts = [settle(part, attempt, kind_of=kind_of) for part in _parts(entries, kind_of)]
    left_out = {entry: why for part in parts for entry, why in part.left_out.items()}
    working = [part for part in parts if part.kept]
    if len(working) < 2:
        best = working[0] if working else parts[0]
        return Settled(kept=best.kept, left_out=left_out, attempt=best.attempt)
    kept = [entry for part in working for entry in part.kept]
    together = attempt(kept)
    if together.error is None:
        return Settled(kept=tuple(kept), left_out=left_out, attempt=together)
    best = max(working, key=lambda part: len(part.kept))
    others = [entry for entry in kept if entry not in best.kept]
    why = f"not together with {listed(best.kept)}: {together.error}"
    left_out |= dict.fromkeys(others, why)
    return Settled(kept=best.kept, left_out=left_out, attempt=best.attempt)


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])|(?<=[a-z])\d+$")
_SIZES = re.compile(r"(?<=\w)\(\w+=[^()]*(\([^()]*\)[^()]*)*\)")


def _parts(entries: Sequence[str], kind_of: Callable[[str], Hashable]) -> Iterable[list[str]]:
    """Entries by kind; one by one where they are all of one."""
    kinds: dict[Hashable, list[str]] = {}
    for entry in entries:
        kinds.setdefault(kind_of(entry), []).append(entry)
    return kinds.values() if len(kinds) > 1 else ([entry] for entry in entries)


def in_words(left_out: Mapping[str, str], *, shown: int = 3) -> str:
    """What was left out and why, a sentence for each reason."""
    reasons: dict[str, dict[str, None]] = {}
    for entry, why in left_out.items():
        # The sizes in a module's representation, and the numbers of layers, tell alike ones apart.
        alike = _SIZES.sub("", why).rstrip(".")
        reasons.setdefault(alike, {})[_NUMBER.sub("*", entry)] = None
    return " ".join(f"{listed(entries, shown=shown)}: {why}." for why, entries in reasons.items())


def listed(names: Collection[str], *, shown: int = 3) -> str:
    """The first names, and how many more there are."""
    first = ", ".join([*names][:shown])
    return f"{first} and {len(names) - shown} more" if len(names) > shown else first
