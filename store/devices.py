"""Devices that are not to be used, and why. Knows nothing of how a device is looked at."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import delete, select
from sqlmodel import col

from ..errors import NotFound
from .database import Database
from .reading import Found, all_of
from .tables import DeviceLeaseRow, QuarantineRow


class QuarantineCause(StrEnum):
    """What is wrong with a device."""

    MEMORY = "memory"
    """Of what a trial used, some did not come back."""
    HEALTH = "health"
    """The driver says that it is unfit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A device that no trial is started on."""

    device: str
    """Its UUID."""
    cause: QuarantineCause
    reason: str
    """In a sentence."""
    baseline_bytes: int | None
    """Of its memory so much was in use before the trial; None where that is not what is wrong."""
    since: datetime
    released: bool
    """It is used in spite of that, because somebody said so."""


class Devices(Database):
    """What the store does with devices."""

    def quarantine_device(
        self, device: str, cause: QuarantineCause, reason: str, *, baseline_bytes: int | None = None
    ) -> bool:
        """Have no trial start on a device, until it is released. Whether that is news.

        A device that was released in spite of the same reason stays released.
        """
        with self._write() as transaction:
            row = transaction.session.get(QuarantineRow, device, with_for_update=True)
            if row is not None and (not row.released or row.reason == reason):
                return False
            if row is None:
                row = QuarantineRow(device=device, cause=cause, reason=reason, since=transaction.now)
                transaction.session.add(row)
            row.cause, row.reason, row.baseline_bytes = cause, reason, baseline_bytes
            row.since, row.released = transaction.now, False
            return True

    def lift_quarantine(self, device: str) -> None:
        """Nothing is wrong with the device any more; the next time that something is counts again."""
        with self._write() as transaction:
            transaction.session.execute(delete(QuarantineRow).where(col(QuarantineRow.device) == device))

    def release_device(self, device: str) -> Quarantine:
        """Use a device in spite of what is wrong with it. Returns what that was.

        Raises:
            NotFound: it is not in quarantine.
        """
        with self._write() as transaction:
            row = transaction.session.get(QuarantineRow, device, with_for_update=True)
            if row is None or row.released:
                raise NotFound(
                    f"no device {device} is in quarantine", next_step="see `rankwise devices list`"
                )
            row.released = True
            return _quarantine_of(row)

    def list_quarantines(self, *, with_released: bool = False) -> list[Quarantine]:
        """Devices that no trial is started on, the latest last.

        Args:
            with_released: those, too, that are used in spite of what is wrong with them.
        """
        query = all_of(QuarantineRow).order_by(col(QuarantineRow.since), col(QuarantineRow.device))
        if not with_released:
            query = query.where(col(QuarantineRow.released).is_(False))
        with self._read() as connection:
            return [_quarantine_of(row) for row in connection.execute(query)]

    def leased_devices(self, devices: Collection[str]) -> set[str]:
        """Those of the devices that an attempt has."""
        query = select(col(DeviceLeaseRow.device)).where(col(DeviceLeaseRow.device).in_(devices))
        with self._read() as connection:
            return set(connection.scalars(query))


def _quarantine_of(row: QuarantineRow | Found) -> Quarantine:
    return Quarantine(
        device=row.device,
        cause=QuarantineCause(row.cause),
        reason=row.reason,
        baseline_bytes=row.baseline_bytes,
        since=row.since,
        released=row.released,
    )
