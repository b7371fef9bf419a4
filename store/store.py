"""The one interface to the database, put together from its subjects: a module each, a mixin each.

Each public method is one transaction. Knows nothing about processes, torch or HTTP.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import StoreError
from . import schema
from .attempts import Attempts
from .backends import backend_of, database_url, trouble_reported
from .clock import Clock
from .counting import Counting
from .devices import Devices
from .estimates import Estimates
from .figures import FigureReading
from .history import History
from .idempotency import Idempotency
from .listing import Listing
from .marks import Marks
from .measurements import Measurements
from .outbox import Outbox
from .reaping import Reaping
from .tokens import Tokens
from .trials import Trials
from .uploads import Uploads


class Store(
    Idempotency,
    Marks,
    Listing,
    Outbox,
    Counting,
    Estimates,
    Trials,
    Measurements,
    Attempts,
    Reaping,
    Devices,
    History,
    FigureReading,
    Tokens,
    Uploads,
):
    """The memory of one ``RANKWISE_HOME``, or of several: safe to share between threads and processes.

    What it promises, whichever database is behind it:

    * a method has either happened entirely, and survives a power cut, or not at all;
    * only the transitions of ``transitions.py`` happen, whoever races;
    * a study is run by one worker at a time, a trial only in a running study, with one live attempt; a device
      serves one attempt;
    * a write of a run or an attempt whose claim is over changes nothing and raises StaleFence;
    * a study has a recommendation exactly when it succeeded;
    * events of a study are numbered 1, 2, 3 … (``events.py`` lists those that the store appends itself).

    Every method raises StoreError when the database cannot be used: locked, full, damaged, out of reach.
    """

    @classmethod
    def open(cls, url_or_path: Path | str, *, clock: Clock | None = None) -> Store:
        """Connect to a database; create its tables where there are none, upgrade them where they are older.

        Raises:
            StoreError: it is newer than this rankwise, of another program, or unusable. It is unchanged.
        """
        url = database_url(url_or_path)
        engine = backend_of(url).connect_engine(url)
        try:
            with trouble_reported(engine):
                schema.bring_up_to_date(engine)
        except StoreError:
            engine.dispose()
            raise
        return cls(engine, clock or backend_of(url).default_clock())

    def schema_version(self) -> str:
        """The version of the database's schema, such as ``0001``."""
        with trouble_reported(self._engine), self._engine.connect() as connection:
            return schema.stored_version(connection) or ""
