"""What one setting is in one trainer's words, in both directions: the entries of :mod:`.table`.

Writing takes all settings, because trainers fold several into one word (Axolotl's ``qlora``) and some mean
something only beside others. Whatever a trainer cannot be told is a :class:`Gap`; whether the training would
then be another one, or only cost otherwise, decides between refusing and mentioning it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .settings import Settings

Keys = Mapping[str, Any]
"""What a trainer's file says: key → value."""


class Effect(StrEnum):
    """What it does to a training that its trainer cannot be told something."""

    OTHER_TRAINING = "other-training"
    """Something else would be trained: refused."""
    OTHER_NUMBERS = "other-numbers"
    """The same is trained; losses differ by rounding, chance or the order of rows."""
    OTHER_COST = "other-cost"
    """The same numbers at another speed, or with other memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A setting that a trainer cannot be told."""

    setting: str
    value: Any
    reason: str
    """What the trainer does instead, in a sentence without its full stop."""
    effect: Effect


class Cannot(Exception):
    """The trainer has no word for this value."""

    def __init__(
        self, reason: str, effect: Effect = Effect.OTHER_TRAINING, *, keys: Keys | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.effect = reason, effect
        self.keys = keys or {}
        """What is written all the same."""


class Unsaid(Exception):
    """The file says nothing of a setting, and the trainer's default is not known."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting in one trainer's words."""

    write: Callable[[Settings, str], Keys]
    """(all settings, this one's name) → keys. Raises :class:`Cannot`."""
    read: Callable[[Keys], Any]
    """The trainer's keys → this setting. Raises :class:`Unsaid`."""
    keys: tuple[str, ...]
    """That it writes or reads; empty where the trainer has none."""
    note: str = ""
    """Where it is told in place of a key, or what holds always."""


def _unsaid(_: Keys) -> Any:
    raise Unsaid


def key(
    name: str,
    *,
    default: Any = Unsaid,
    to: Callable[[Any], Any] = lambda value: value,
    back: Callable[[Any], Any] = lambda value: value,
    omit_empty: bool = False,
) -> Cell:
    """One key for one setting.

    Args:
        default: the setting that an absent key means.
        to: the setting's value in the trainer's words; may raise :class:`Cannot`.
        back: the trainer's word as a setting's value.
        omit_empty: None, an empty text, list or mapping are not written.
    """

    def write(settings: Settings, setting: str) -> Keys:
        value = settings[setting]
        if omit_empty and (value is None or value in ("", [], {})):
            return {}
        return {name: to(value)}

    def read(keys: Keys) -> Any:
        if keys.get(name) is None:
            if default is Unsaid:
                raise Unsaid
            return default
        return back(keys[name])

    return Cell(write, read, (name,))


def word(name: str, words: Mapping[Any, Any], *, default: Any = Unsaid, otherwise: str) -> Cell:
    """One key whose values have other names: setting's value → trainer's.

    Args:
        otherwise: why a value that is not among them cannot be told.
    """
    known = {trainers: ours for ours, trainers in words.items()}

    def to(value: Any) -> Any:
        if value not in words:
            raise Cannot(otherwise)
        return words[value]

    return key(name, default=default, to=to, back=lambda value: known.get(value, value))


def several(
    names: Sequence[str], write: Callable[[Settings], Keys], read: Callable[[Keys], Any] | None = None
) -> Cell:
    """Several keys for one setting, or keys that depend on other settings too."""
    return Cell(lambda settings, _: write(settings), read or _unsaid, tuple(names))


def only(*values: Any, instead: str, effect: Effect = Effect.OTHER_TRAINING) -> Cell:
    """No key: the trainer does the first of these values, the others being the same to it.

    Args:
        instead: what it does where another value is wanted.
    """

    def write(settings: Settings, setting: str) -> Keys:
        if settings[setting] not in values:
            raise Cannot(instead, effect)
        return {}

    return Cell(write, lambda _: values[0], (), f"always {values[0]}" if values[0] else "never")


def elsewhere(where: str) -> Cell:
    """No key in this file, because another one tells it."""
    return Cell(lambda *_: {}, _unsaid, (), where)
