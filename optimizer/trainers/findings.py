"""What is wrong with a trainer's settings, or better otherwise, told from the file alone.

The rules are in :mod:`.file_rules`. Knows nothing of the model and of what a training needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .file_facts import Facts, FileRule, Finding, Severity, called, version_of
from .file_rules import FILE_RULES
from .reading import REFUSES_UNKNOWN, Reading


def findings(facts: Facts) -> tuple[Finding, ...]:
    """All that can be told without looking at the model, the worst first."""
    by_rule = (_by_rule(rule, facts) for rule in FILE_RULES if rule.applies(facts))
    return in_order((*_about_keys(facts), *_about_values(facts), *by_rule))


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first, else as they were found."""
    return tuple(sorted(found, key=lambda each: list(Severity).index(each.severity)))


def _by_rule(rule: FileRule, facts: Facts) -> Finding:
    return Finding(
        id=rule.id,
        severity=rule.severity,
        message=rule.message(facts),
        next_step=rule.next_step,
        key=_pointed_at(rule.keys, facts.reading),
        versions=rule.versions,
    )


def _pointed_at(names: tuple[str, ...], reading: Reading) -> str | None:
    named = (reading.key_of.get(name, name) for name in names)
    return next((name for name in named if name in reading.keys), None)


def _about_keys(facts: Facts) -> Iterator[Finding]:
    for reading in filter(None, (facts.reading, facts.deepspeed, facts.adapter)):
        refuses = reading.trainer in REFUSES_UNKNOWN
        for unknown in reading.unknown:
            does = "which ends with an error there" if refuses else "which passes over it: it has no effect"
            near = f"did you mean {unknown.nearest}?" if unknown.nearest else "leave it out"
            yield Finding(
                id="unknown-key",
                severity=Severity.ERROR if refuses else Severity.WARNING,
                message=f"{unknown.key!r:.80} is no key of {called(reading.trainer)}, {does}",
                next_step=near,
                key=unknown.key if reading is facts.reading else None,
                versions=version_of(reading.trainer),
            )


def _about_values(facts: Facts) -> Iterator[Finding]:
    for reading in filter(None, (facts.reading, facts.deepspeed, facts.adapter)):
        for bad in reading.bad:
            yield Finding(
                id="bad-value",
                severity=Severity.ERROR,
                message=f"{bad.key} is {bad.value!r:.80}, and has to be {bad.wanted}",
                next_step="correct it",
                key=bad.key if reading is facts.reading else None,
            )
