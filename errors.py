"""The exceptions that rankwise raises on purpose, and what each means to whoever called.

    RankwiseError                 anything below; caught at the edges (command line, API, job reports)
    ├── InputError                the request cannot be served as written      exit 2 / HTTP 422
    │   ├── ModelError            … because of the model                       exit 2 / HTTP 422
    │   ├── DatasetError          … because of the data                        exit 2 / HTTP 422
    │   ├── KeyReused             … its key came with another request before   exit 2 / HTTP 422
    │   └── PathNotAllowed        … the path lies outside the allowed roots    exit 2 / HTTP 403
    ├── NotFound                  no such study, trial or recommendation       exit 2 / HTTP 404
    ├── Conflict                  the object's state forbids the operation     exit 2 / HTTP 409
    ├── NothingFits               no candidate meets the constraints           exit 3 / HTTP 409
    ├── StoreError                the database is unusable (newer, locked …)   exit 2 / HTTP 503
    ├── StaleFence                a late write by a worker that lost its lease (never shown to users)
    ├── RunnerError               a process of ours could not do its work      exit 1 / HTTP 500
    └── RemoteError               a server cannot be reached, or is none       exit 1 / HTTP 502

Every message names the value, the cause and the next step. This module knows nothing about HTTP or
terminals: the numbers above are applied by the edges.
"""

from __future__ import annotations


class RankwiseError(Exception):
    """Base of all errors that rankwise raises on purpose.

    Args:
        message: what is wrong, with the value that was met and its cause.
        next_step: what the reader can do about it; empty where nothing can be done.
    """

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} — {self.next_step}" if self.next_step else self.message


class InputError(RankwiseError):
    """The request cannot be served as written."""


class ModelError(InputError):
    """The model is missing, unreadable, unsafe to load or of an unsupported kind."""


class DatasetError(InputError):
    """The dataset is missing, unreadable or has no usable column."""


class KeyReused(InputError):
    """An idempotency key came before with another request."""


class PathNotAllowed(InputError):
    """A path lies outside the roots that the operator allowed."""


class NotFound(RankwiseError):
    """No object with this id."""


class Conflict(RankwiseError):
    """The object's present state forbids the operation."""


class NothingFits(RankwiseError):
    """No candidate meets the constraints."""


class StoreError(RankwiseError):
    """The database cannot be used as it is."""


class StaleFence(RankwiseError):
    """A worker wrote with a fencing token that is no longer current; the write was refused."""


class RunnerError(RankwiseError):
    """One of our own processes could not do its work."""


class RemoteError(RankwiseError):
    """A server cannot be reached, or what answered is not rankwise."""
