"""The client of a server: asks for studies, follows them and reads what came of them.

Answers are the documents that the server writes, as frozen types; what a newer server adds to them is passed
over. Knows nothing of terminals, and imports neither torch nor a web framework.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, Unpack
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError
from ulid import ULID

from ...errors import Conflict, InputError, NotFound, RemoteError
from ...optimizer.domain import StudyRequest, StudyState
from ..asking import StudyOptions, read_request
from ..failure import failure_of
from ..request_schemas import ANSWERED, StudyBody
from ..response_schemas.events import EventDocument, EventList
from ..response_schemas.exports import ExportDocument, FilesDocument
from ..response_schemas.host import HardwareDocument
from ..response_schemas.recommendations import RecommendationDocument
from ..response_schemas.studies import StudyDocument, StudyList
from ..response_schemas.trials import TrialList
from ..response_schemas.uploads import UploadDocument
from .connection import READ_S, Connection
from .server import Server

EVENT_STREAM = "text/event-stream"
POLL_S = 2.0
"""Between looks at a server that streams nothing."""
RECONNECT_S = 1.0
CHUNK_BYTES = 2**18
MOST_FRUITLESS = 20
"""Streams in a row that broke off without an event before the server is given up."""

Document = TypeVar("Document", bound=BaseModel)


class Client:
    """A rankwise server.

        with Client("https://rankwise.example") as server:
            study = server.submit("/models/llama", "/data/chats.jsonl", budget="2h")
            if server.wait(study.id).state == "succeeded":
                print(server.recommendation(study.id).description)

    Paths of models and data are the server's, unless :meth:`upload` brought the data there. Requests that a
    broken connection left in doubt, or that a busy server put off, are sent again; a study is asked for once
    all the same.

    Args:
        url: ``$RANKWISE_URL`` if None, else this machine's server.
        token: ``$RANKWISE_TOKEN`` if None, else the first line of ``$RANKWISE_TOKEN_FILE``.
        retries: how often a request is sent again.
        timeout_s: for an answer to a request.
        transport: in place of the network.

    Raises:
        InputError: the URL is none, or the token's file is readable by others.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        retries: int = 5,
        timeout_s: float = READ_S,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection(
            Server.find(url, token), retries=retries, timeout_s=timeout_s, transport=transport, sleep=sleep
        )
        self._sleep = sleep

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._connection.server.url

    def close(self) -> None:
        """Close all connections; studies go on."""
        self._connection.close()

    # Studies

    def submit(
        self,
        model: str | PathLike[str],
        dataset: str | PathLike[str],
        *,
        key: str | None = None,
        **options: Unpack[StudyOptions],
    ) -> StudyDocument:
        """Ask for a study, and return at once.

        Args:
            model: a path on the server's machine, or an id on the hub.
            dataset: the same, or the path that :meth:`upload` returned.
            key: the same key asks for the same study: a second call returns the first one's. A new one
                if None.
            options: as for :func:`rankwise.recommend`.

        Raises:
            InputError: the request is refused, here or there, or the key was used for another one.
            RankwiseError: the key's study ended with it.
            RemoteError: the server cannot be reached.
        """
        return self.submit_request(read_request(model, dataset, **options), key=key)

    def submit_request(self, request: StudyRequest, *, key: str | None = None) -> StudyDocument:
        """As :meth:`submit`, of a request in the domain's form."""
        if request.eval_command:
            raise InputError(
                "no server runs an evaluation command that it is sent",
                next_step="ask on the server's machine, or leave eval_command out",
            )
        headers = {"Idempotency-Key": str(ULID()) if key is None else key}
        response = self._connection.send("POST", "/v1/studies", json=_body_of(request), headers=headers)
        if response.status_code == HTTPStatus.OK:  # the study has ended: this is what it recommends
            return self.study(response.headers.get("Location", "").rpartition("/")[2])
        return _read(StudyDocument, response)

    def study(self, study_id: str) -> StudyDocument:
        """Where a study stands.

        Raises:
            NotFound: there is none with this id.
        """
        return self._get(StudyDocument, _path(study_id))

    def studies(self, *, state: str | None = None, limit: int | None = None) -> Iterator[StudyDocument]:
        """Studies, newest first, read page by page.

        Args:
            state: only those in it.
            limit: how many at most.
        """
        path: str | None = "/v1/studies"
        params = {} if state is None else {"state": StudyState(state).value}
        if limit is not None:
            params["limit"] = str(min(limit, 200))
        left = limit
        while path is not None:
            page = self._get(StudyList, path, params=params)
            params = {}  # the next page's address has them
            for study in page.studies:
                if left == 0:
                    return
                yield study
                left = None if left is None else left - 1
            path = page.next

    def trials(self, study_id: str) -> TrialList:
        """A study's trials with what they measured, failed ones included, read page by page."""
        page = first = self._get(TrialList, _path(study_id, "trials"))
        trials = list(first.trials)
        while page.next is not None:
            page = self._get(TrialList, page.next)
            trials += page.trials
        return first.model_copy(update={"trials": tuple(trials), "next": None, "next_cursor": None})

    def cancel(self, study_id: str) -> StudyDocument:
        """Cancel a study; one that runs is cancelled once its trial has been stopped.

        Raises:
            NotFound: there is none with this id.
            Conflict: it has ended otherwise.
        """
        try:
            return _read(StudyDocument, self._connection.send("DELETE", _path(study_id)))
        except Conflict:
            study = self.study(study_id)  # the answer to a first request may have been lost on its way
            if study.state is StudyState.CANCELLED:
                return study
            raise

    # What came of them

    def recommendation(self, study_id: str) -> RecommendationDocument:
        """What a study recommends.

        Raises:
            NotFound: there is no such study, or it has not succeeded.
        """
        return self._get(RecommendationDocument, _path(study_id, "recommendation"))

    def recommend(
        self,
        model: str | PathLike[str],
        dataset: str | PathLike[str],
        *,
        key: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[StudyOptions],
    ) -> RecommendationDocument:
        """Ask for a study, wait for it and return what it recommends: :func:`rankwise.recommend`, elsewhere.

        Args:
            model: as for :meth:`submit`, like the rest.
            dataset: as for :meth:`submit`.
            key: as for :meth:`submit`.
            timeout_s: how long to wait; without limit if None. The study goes on beyond.
            options: as for :func:`rankwise.recommend`.

        Raises:
            NothingFits: no configuration meets the limits.
            InputError: the request is refused.
            RunnerError: the study failed, or was cancelled.
            RemoteError: the server cannot be reached, or the time is over.
        """
        submitted = self.submit(model, dataset, key=key, **options)
        study = self.wait(submitted.id, timeout_s=timeout_s)
        if error := failure_of(study):
            raise error
        return self.recommendation(study.id)

    def export(self, study_id: str, form: str) -> ExportDocument:
        """The recommendation in a trainer's files, as ``rankwise export --format`` writes them.

        Raises:
            InputError: there is no such format, or the trainer would train something else.
        """
        return self._get(ExportDocument, _path(study_id, "exports", form))

    def files(self, study_id: str) -> FilesDocument:
        """What ``rankwise recommend --out`` writes: evidence, report, adapter, training script.

        Raises:
            NotFound: there is no such study, or it has not succeeded.
        """
        return self._get(FilesDocument, _path(study_id, "files"))

    def report(self, study_id: str) -> str:
        """A finished study as one page of HTML."""
        return self._connection.send("GET", _path(study_id, "report")).text

    # Waiting

    def events(self, study_id: str, *, after: int = 0) -> Iterator[EventDocument]:
        """A study's history from its beginning or after some event, and what happens until it is final.

        The connection may break meanwhile: no event is left out, and none comes twice.

        Raises:
            NotFound: there is no study with this id.
            RemoteError: the server cannot be reached any more.
        """
        yield from self._follow(study_id, after=after, deadline=None)

    def wait(self, study_id: str, *, timeout_s: float | None = None) -> StudyDocument:
        """The study once it is final, in whatever state that is.

        Raises:
            RemoteError: the time is over, or the server cannot be reached any more. The study goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _event in self._follow(study_id, after=0, deadline=deadline):
            pass
        study = self.study(study_id)
        if not study.state.is_final:
            raise RemoteError(
                f"study {study_id} is {study.state} after {timeout_s:.0f} s",
                next_step="wait again: the study goes on",
            )
        return study

    def _follow(self, study_id: str, *, after: int, deadline: float | None) -> Iterator[EventDocument]:
        """Events until the study is final or the time is over."""
        seen, fruitless = after, 0
        while deadline is None or time.monotonic() < deadline:
            before = seen
            try:
                for event in self._stream(study_id, after=seen, deadline=deadline):
                    if event.seq > seen:
                        seen = event.seq
                        yield event
                is_streamed = True
            except httpx2.ReadTimeout:
                is_streamed = True  # a proxy that holds heartbeats back, or the time is over
            except httpx2.TransportError as error:
                fruitless = fruitless + 1 if seen == before else 0
                if fruitless >= MOST_FRUITLESS:
                    raise RemoteError(
                        f"the connection to {self.url} broke off {fruitless} times in a row: {error}",
                        next_step="see what its log says",
                    ) from error
                is_streamed = True
            except _NotStreamed as answer:
                for event in answer.events:
                    seen = event.seq
                    yield event
                is_streamed = False
            if seen == before and self.study(study_id).state.is_final:
                return
            if seen == before:
                pause_s = RECONNECT_S if is_streamed else POLL_S
                left_s = pause_s if deadline is None else max(0.0, deadline - time.monotonic())
                self._sleep(min(pause_s, left_s))

    def _stream(self, study_id: str, *, after: int, deadline: float | None) -> Iterator[EventDocument]:
        """Events as the server sends them, until it ends the stream.

        Raises:
            _NotStreamed: it answered with a list instead.
            httpx2.TransportError: the stream broke off.
        """
        read_s = READ_S if deadline is None else max(0.1, min(READ_S, deadline - time.monotonic()))
        headers = {"Accept": f"{EVENT_STREAM}, application/json;q=0.5", "Last-Event-ID": str(after)}
        path = f"{_path(study_id, 'events')}?after={after}"
        with self._connection.stream(path, headers=headers, read_s=read_s) as response:
            if response.status_code == HTTPStatus.NO_CONTENT:
                return  # the study has ended, and all of it was read
            if response.headers.get("Content-Type", "").partition(";")[0].strip() != EVENT_STREAM:
                response.read()
                raise _NotStreamed(_read(EventList, response).events)
            for sent in httpx2.EventSource(response):
                if sent.data:
                    yield _parsed(EventDocument, sent.data)
                if deadline is not None and time.monotonic() > deadline:
                    return

    # The server

    def upload(self, path: str | PathLike[str], *, filename: str | None = None) -> UploadDocument:
        """Send a file of data there; a study names it by the answer's ``dataset``.

        Args:
            path: of a file here.
            filename: what it is called there, with the extension that says its format; its own name if None.

        Raises:
            InputError: it cannot be read, is too large, or is not what its name says.
        """
        file = Path(path)
        try:
            size_bytes = file.stat().st_size
            with file.open("rb"):
                pass
        except OSError as error:
            raise InputError(
                f"{file} cannot be read: {error.strerror}", next_step="name a file of data"
            ) from error
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        response = self._connection.send(
            "POST",
            "/v1/datasets",
            params={"filename": filename or file.name},
            content=lambda: _chunks(file),
            headers=headers,
        )
        return _read(UploadDocument, response)

    def hardware(self) -> HardwareDocument:
        """What trials would run on there, read just now."""
        return self._get(HardwareDocument, "/v1/hardware")

    def _get(self, kind: type[Document], path: str, *, params: Any = None) -> Document:
        return _read(kind, self._connection.send("GET", path, params=params or None))


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as read:
        while chunk := read.read(CHUNK_BYTES):
            yield chunk


class _NotStreamed(Exception):
    """The server has no streams; this is the list of events that it answered with."""

    def __init__(self, events: tuple[EventDocument, ...]) -> None:
        super().__init__(f"{len(events)} events")
        self.events = events


def _path(study_id: str, *parts: str) -> str:
    if not study_id.isalnum():
        raise NotFound(f"no study has the id {study_id!r:.60}", next_step="see rankwise client studies list")
    return "/".join(("/v1/studies", study_id, *(quote(part, safe="") for part in parts)))


def _body_of(request: StudyRequest) -> dict[str, Any]:
    """Only what differs from the defaults: an older server refuses keys that it does not know."""
    body = StudyBody.from_request(request).model_dump(mode="json", exclude_defaults=True)
    if request.baseline is not None:  # whose file stands in for these where a body does not name them
        body |= {"effective_batch": request.effective_batch, "epochs": request.epochs}
    return body


def _read(kind: type[Document], response: httpx2.Response) -> Document:
    return _parsed(kind, response.content)


def _parsed(kind: type[Document], text: str | bytes) -> Document:
    try:
        return kind.model_validate_json(text, extra="ignore", context=ANSWERED)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"])) or "the answer"
        raise RemoteError(
            f"the server's answer is not understood: {place}: {wrong['msg']}",
            next_step="check RANKWISE_URL, and that client and server are of versions that go together",
        ) from error
