"""Which of few rows to hold out, and from which moment on, so that neither is left to chance.

Rows have a key, equal for those that stay together, and often a class. Knows nothing else of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..errors import DatasetError
from .recipe import row_hash

EXACT_SPLIT_ROWS = 1000
"""Up to so many rows, which are held out is not left to chance."""


def choose_keys(
    rows: Iterable[tuple[str, str | None]],
    share: float,
    *,
    seed: int,
    source: str,
    together: Iterable[tuple[str, str]] = (),
) -> str:
    """The hashes of the keys to hold out, in one text: ``share`` of the rows, of each class its share.

    Keys are taken in the order of their hashes, those left out that would make too many. Of each class that
    has two keys or more at least one is held out, and at least one is not; a class with one key is learnt.
    Keys that should stay together, but would hold half of all rows, do not.

    Args:
        rows: key and class of each; None where the task has no classes.
        share: of all rows, at most a half.
        seed: of the hashes.
        source: what the user wrote for the data.
        together: pairs of keys that stay on one side as well.

    Raises:
        DatasetError: all rows stay together, so that none can be held out.
    """
    counted: dict[str, Counter[str | None]] = defaultdict(Counter)
    for key, name in rows:
        counted[key][name] += 1
    sets = _sets(counted, together)
    total = sum(classes.total() for classes in counted.values())
    if 2 * max((classes.total() for classes in sets.values()), default=0) > total:
        sets = _sets(counted, ())
    if len(sets) < 2:
        raise DatasetError(
            f"all rows of {source} have the same input or group, and such rows stay together: "
            "none can be held out",
            next_step="bring different rows",
        )
    of_class: dict[str | None, list[tuple[str, ...]]] = defaultdict(list)
    sizes = {keys: classes.total() for keys, classes in sets.items()}
    for keys, classes in sets.items():
        of_class[min(classes, key=lambda name: (-classes[name], name or ""))].append(keys)
    divisible = {name: members for name, members in of_class.items() if len(members) > 1}
    if not divisible:  # as many classes as inputs
        divisible = {None: list(sets)}
    targets = _shares({name: sum(map(sizes.__getitem__, it)) for name, it in divisible.items()}, share)
    chosen: list[str] = []
    for name, members in divisible.items():
        for keys in _filled(members, sizes, targets[name], seed=seed):
            chosen += (row_hash(key, seed=seed) for key in keys)
    return " ".join(sorted(chosen))


def choose_border(times: Sequence[float], share: float, *, source: str) -> float:
    """The moment from which on rows are held out: about their last ``share``, ties on one side.

    Raises:
        DatasetError: all rows have the same time.
    """
    counts = sorted(Counter(times).items())
    if len(counts) < 2:
        raise DatasetError(
            f"all rows of {source} have the same time, so none of them is later",
            next_step="pass --time-column with another column, or leave it out",
        )
    target, heldout = share * len(times), 0
    border = counts[-1][0]
    for moment, number in reversed(counts[1:]):
        heldout += number
        if moment != counts[-1][0] and heldout > target:
            break
        border = moment
    return border


def _sets(
    counted: Mapping[str, Counter[str | None]], together: Iterable[tuple[str, str]]
) -> dict[tuple[str, ...], Counter[str | None]]:
    """Keys that stay together → how many rows of each class have one of them."""
    members = {key: [key] for key in counted}
    for first, second in together:
        if members[first] is not members[second]:
            members[first] += members[second]
            for key in members[second]:
                members[key] = members[first]
    sets = {tuple(sorted(keys)) for keys in members.values()}
    return {keys: sum((counted[key] for key in keys), Counter()) for keys in sorted(sets)}


def _shares(rows: Mapping[str | None, int], share: float) -> dict[str | None, int]:
    """How many rows to hold out of each class; the largest remainders are rounded up."""
    exact = {name: share * number for name, number in rows.items()}
    found = {name: int(value) for name, value in exact.items()}
    left = max(1, int(share * sum(rows.values()) + 1e-9)) - sum(found.values())
    for name in sorted(exact, key=lambda it: (found[it] - exact[it], it or ""))[:left]:
        found[name] += 1
    return found


def _filled(
    members: Sequence[tuple[str, ...]], sizes: Mapping[tuple[str, ...], int], target: int, *, seed: int
) -> list[tuple[str, ...]]:
    """At most half of these, with ``target`` rows or fewer; the smallest, if none has as few."""
    in_order = sorted(members, key=lambda keys: row_hash(keys[0], seed=seed))
    chosen: list[tuple[str, ...]] = []
    rows = 0
    for keys in in_order:
        if rows + sizes[keys] <= target and 2 * len(chosen) + 2 <= len(members):
            chosen.append(keys)
            rows += sizes[keys]
    return chosen or [min(in_order, key=sizes.__getitem__)]
