"""A connection to the database and the two kinds of transaction: what the store's subjects are built on.

Knows nothing about tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from .backends import backend_of, trouble_reported
from .clock import Clock
from .transaction import Transaction


class Database:
    """An engine, a clock, and transactions that report trouble as StoreError."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        backend = backend_of(engine)
        self._for_reads, self._for_writes = backend.for_reads(engine), backend.for_writes(engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout. No entities: see ``reading.py``."""
        with trouble_reported(self._engine), self._for_reads.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """A transaction that no other writer comes between; committed at the end, rolled back on an error."""
        with trouble_reported(self._engine), Session(self._for_writes, expire_on_commit=False) as session:
            yield Transaction(session, self._clock.now(session))
            session.commit()
