"""How much rankwise leaves on the disk: what a trial may write, and how long folders and logs stay.

Folders of studies that have not ended are never removed, whatever their age or size. Knows nothing of what
the folders hold: all that is needed of a trial later is in the database.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..home import Home
from .disk_use import folder_bytes

KEEP_DAYS = "RANKWISE_KEEP_DAYS"
KEEP_GIB = "RANKWISE_KEEP_GIB"
TRIAL_DISK_GIB = "RANKWISE_TRIAL_DISK_GIB"
LOG_BYTES = 16 * 2**20
"""A log of our own that is larger is put aside when its process starts; one older log is kept."""
LEAST_TRIAL_BYTES = 10 * 2**30
TRIAL_WEIGHTS = 8
"""A full fine-tuning that is saved whole, with its optimizer's state in float32, takes six times the weights
of a model in 16 bits."""

_GIB = 2**30
_DAY_S = 86_400.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What the operator allows. None: no limit."""

    days: float | None = 30.0
    """Folders of ended studies stay so long after they were last written to …"""
    size_bytes: int | None = 20 * _GIB
    """… and the latest of them so long as all folders take no more than this."""
    trial_bytes: int | None = None
    """A trial may leave so much in its folder; None: by the size of the model."""

    @classmethod
    def from_environment(cls) -> Keeping:
        """As the variables above say; ``0`` days or GiB keep nothing, ``off`` keeps everything.

        Raises:
            InputError: one of them is no such number.
        """
        standard = cls()
        return cls(
            days=_number(KEEP_DAYS, standard.days),
            size_bytes=_bytes(_number(KEEP_GIB, None if standard.size_bytes is None else 20.0)),
            trial_bytes=_bytes(_number(TRIAL_DISK_GIB, None)),
        )

    def trial_limit_bytes(self, weight_bytes: int) -> int:
        """What a trial of a model of this size may leave in its folder."""
        if self.trial_bytes is not None:
            return self.trial_bytes
        return LEAST_TRIAL_BYTES + TRIAL_WEIGHTS * weight_bytes


def remove_old(home: Home, keeping: Keeping, unfinished: Callable[[], Collection[str]]) -> list[str]:
    """Remove folders that need not stay, oldest first; returns their names.

    Args:
        home: whose folders.
        keeping: which need not stay.
        unfinished: the ids of studies that have not ended, and of their trials. Asked after the folders are
            listed, so that it knows whose they are.
    """
    root = home.root / "trials"
    ages = sorted((folder.stat().st_mtime, folder) for folder in root.iterdir() if folder.is_dir())
    live = unfinished()
    candidates = [(written_s, folder) for written_s, folder in ages if folder.name not in live]
    total = sum(folder_bytes(folder) for _, folder in ages) if keeping.size_bytes is not None else 0
    removed = []
    for written_s, folder in candidates:
        too_old = keeping.days is not None and time.time() - written_s > keeping.days * _DAY_S
        too_much = keeping.size_bytes is not None and total > keeping.size_bytes
        if not too_old and not too_much:
            continue
        total -= folder_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder.name)
    if removed:
        log.info("%d folders of ended studies are removed below %s", len(removed), root)
    return removed


def put_aside(path: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Begin a log anew that has grown large; its end stays beside it as ``.1``."""
    try:
        if path.stat().st_size > limit_bytes:
            path.replace(path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return


def _number(name: str, standard: float | None) -> float | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return standard
    if text.lower() == "off":
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(f"{name} is {text!r}", next_step="set it to a number, or to off")
    return number


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * _GIB)
