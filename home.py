"""Where rankwise keeps its state on disk: the layout of ``RANKWISE_HOME``.

Knows paths only; creates folders on request and opens nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InputError


def _database_url() -> str | None:
    return os.environ.get("RANKWISE_DATABASE_URL") or None


@dataclass(frozen=True, slots=True)
class Home:
    """The folders and files below one ``RANKWISE_HOME``, and the database that belongs to it."""

    root: Path
    database_url: str | None = field(default_factory=_database_url, repr=False)
    """``$RANKWISE_DATABASE_URL``: where studies are kept if not in a file below ``root``."""

    @classmethod
    def from_environment(cls) -> Home:
        """``$RANKWISE_HOME``, else ``$XDG_STATE_HOME/rankwise``, else ``~/.local/state/rankwise``."""
        if explicit := os.environ.get("RANKWISE_HOME"):
            return cls(Path(explicit).expanduser().resolve())
        state = os.environ.get("XDG_STATE_HOME")
        base = Path(state).expanduser() if state else Path.home() / ".local" / "state"
        return cls((base / "rankwise").resolve())

    @property
    def database(self) -> Path | str:
        """What the store is opened with: the URL if there is one, else the SQLite file."""
        return self.database_url or self.root / "rankwise.db"

    @property
    def tokens(self) -> Path:
        """Token files, one folder per (data, tokenizer, recipe) hash."""
        return self.root / "cache" / "tokens"

    @property
    def uploads(self) -> Path:
        """Datasets that were sent to the service, each under the hash of its content."""
        return self.root / "uploads"

    @property
    def logs(self) -> Path:
        """Logs of the supervisor and the warm server."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Locks and sockets of live processes."""
        return self.root / "run"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the one supervisor of this home for as long as it lives."""
        return self.run / "supervisor.lock"

    def trial_folder(self, trial_id: str) -> Path:
        """Spec, log and artefacts of one trial."""
        return self.root / "trials" / trial_id

    def create(self) -> Home:
        """Make the folders (mode 0700: logs and databases may name private data). Returns itself.

        Raises:
            InputError: the file system does not allow it.
        """
        for folder in (self.root, self.tokens, self.uploads, self.logs, self.run, self.root / "trials"):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"{folder} cannot be made: {error.strerror or error}",
                    next_step="set RANKWISE_HOME to a folder that you may write to",
                ) from error
            if not os.access(folder, os.W_OK | os.X_OK):
                raise InputError(
                    f"{folder} cannot be written to",
                    next_step="set RANKWISE_HOME to a folder that you may write to",
                )
        return self
