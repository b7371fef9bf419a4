"""Which methods a model takes, found by trying: each is built by PEFT and takes a step on tiny input.

Knows nothing of how a model is built and run (:mod:`.transformers_model`, :mod:`.own_module`), nor of what is
worth training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..optimizer.domain import Adapter, Method, Quantization
from ..optimizer.sizes import trainable_parameters
from ..optimizer.verdicts import (
    VARIANTS,
    Attempt,
    Proof,
    Settled,
    Support,
    Variant,
    Verdict,
    Where,
    in_words,
    listed,
    settle,
)
from ..probes.profiles import ModelProfile
from .trying import quiet

LEFT_ALONE_SHARE = 0.5
"""From this share of the parameters on it is said that they are left as they are."""


NOTHING_TO_TRAIN = {
    Method.HEAD: "No head is told from the body, or it is tied to the embedding.",
    Method.LAST_BLOCKS: "No blocks are stacked, or there is only one.",
    Method.BITFIT: "The model has no biases.",
    Method.NORMS: "The model has no norms with a weight.",
}


class Subject(Protocol):
    """A model that methods are tried on."""

    profile: ModelProfile
    why_no_step: str
    """Where none can be taken, why."""

    def tiers(self, variant: Variant) -> Iterator[Sequence[str]]:
        """What the method could be put on; a later tier only where nothing of an earlier one works."""

    def adapter(self, variant: Variant, entries: Sequence[str], /) -> Adapter | None:
        """The method on these targets; None where the model has nothing that it could train."""

    def attempt(self, variant: Variant, entries: Sequence[str]) -> Attempt:
        """Put the method on these targets, and take a step."""

    def known(self, variant: Variant, /) -> Mapping[str, str]:
        """Modules that are left out without a try → why."""

    def build_only(self, reason: str, /) -> None:
        """Take no steps from now on: the model itself cannot."""

    def kind_of(self, entry: str) -> tuple[Any, ...]:
        """Entries of one kind mostly work or fail alike."""

    def trainable(self, variant: Variant, settled: Settled, /) -> int | None:
        """Parameters that are trained in the whole model."""

    def warnings(self, variant: Variant, settled: Settled, /) -> Sequence[str]:
        """What else there is to know, in sentences."""

    def where(self, kept: Sequence[str], /) -> Where:
        """These entries as PEFT takes them."""


def verdicts_of(subject: Subject, *, libraries: Collection[str]) -> tuple[Verdict, ...]:
    """A verdict for each variant.

    Args:
        subject: what they are tried on.
        libraries: packages that are installed; without bitsandbytes nothing is quantized.
    """
    with quiet():
        *others, full = VARIANTS
        last = _verdict(subject, full, libraries)
        if last.reason is not None and not last.supported:
            subject.build_only(last.reason)
        return (*(_verdict(subject, variant, libraries) for variant in others), last)


def _verdict(subject: Subject, variant: Variant, libraries: Collection[str]) -> Verdict:
    if variant.quantization is not Quantization.NONE and "bitsandbytes" not in libraries:
        reason = "Quantization needs the package bitsandbytes, which is not installed."
        return Verdict(name=variant.name, support=Support.NO, reason=reason)
    if not variant.method.has_adapter:
        return _without_adapter(subject, variant)
    left_out = dict(subject.known(variant))
    tiers = [*subject.tiers(variant)]
    for number, tier in enumerate(tiers):
        if not tier:
            continue
        settled = settle(tier, partial(subject.attempt, variant), kind_of=subject.kind_of)
        left_out |= settled.left_out
        if settled.kept:
            more = _of_the_rest(subject, variant, tiers[1]) if number == 0 and len(tiers) > 1 else []
            return _positive(subject, variant, settled, left_out, is_first=number == 0, more=more)
    reason = in_words(left_out) or "The model has no module of a kind that the method can sit on."
    return Verdict(name=variant.name, support=Support.NO, reason=reason, left_out=left_out)


def _positive(
    subject: Subject,
    variant: Variant,
    settled: Settled,
    left_out: Mapping[str, str],
    *,
    is_first: bool,
    more: Sequence[str],
) -> Verdict:
    warnings = [*more, *subject.warnings(variant, settled)]
    reasons = [*([in_words(left_out)] if left_out else []), *warnings]
    if not is_first and not left_out:
        reasons.append("There is no linear layer: it sits on other modules.")
    if settled.attempt.proof is Proof.BUILD:
        reasons.append(f"Built, but no step was taken: {subject.why_no_step}.")
    return Verdict(
        name=variant.name,
        support=Support.PARTLY if left_out or warnings or not is_first else Support.YES,
        reason=" ".join(reasons) or None,
        where=subject.where(settled.kept),
        trainable_params=subject.trainable(variant, settled),
        proof=settled.attempt.proof,
        left_out=left_out,
    )


def _of_the_rest(subject: Subject, variant: Variant, tier: Sequence[str]) -> list[str]:
    """Whether the method takes what is left as it is, where that is most of the model."""
    sizes = {module.name: module.parameters for module in subject.profile.modules}
    share = sum(sizes.get(entry, 0) for entry in tier) / max(1, subject.profile.parameters)
    if share <= LEFT_ALONE_SHARE:
        return []
    kept = settle(tier, partial(subject.attempt, variant), kind_of=subject.kind_of).kept
    takes = "could be adapted too" if kept else "cannot be adapted"
    return [f"{listed(tier)}, {share:.0%} of all parameters, are left as they are: they {takes}."]


def _without_adapter(subject: Subject, variant: Variant) -> Verdict:
    adapter = subject.adapter(variant, ())
    if adapter is None:
        return Verdict(name=variant.name, support=Support.NO, reason=NOTHING_TO_TRAIN[variant.method])
    attempt = subject.attempt(variant, ())
    if attempt.error is not None:
        return Verdict(name=variant.name, support=Support.NO, reason=attempt.error)
    return Verdict(
        name=variant.name,
        support=Support.PARTLY if attempt.idle else Support.YES,
        reason=in_words(attempt.idle) or None,
        where=Where(trained=adapter.trained_parts),
        trainable_params=trainable_parameters(adapter, subject.profile)
        if attempt.trainable_params is None
        else attempt.trainable_params,
        proof=attempt.proof,
        left_out=attempt.idle,
    )
