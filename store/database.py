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

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout. No entities: see ``reading.py``."""
        engine = backend_of(self._engine).for_reads(self._engine)
        with trouble_reported(engine), engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """A transaction that no other writer comes between; committed at the end, rolled back on an error."""
        engine = backend_of(self._engine).for_writes(self._engine)
        with trouble_reported(engine), Session(engine, expire_on_commit=False) as session:
            yield Transaction(session, self._clock.now(session))
            session.commit()
