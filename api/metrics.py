"""What the server tells Prometheus: names with units, read from store, driver and kernel when it is asked.

Counts of studies and trials come from the database, so that they are right after a restart and the same from
every server of it; those of requests are this process's own. Knows nothing of routes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..optimizer.domain import StudyState, TrialState
from ..probes.gpu import read_gpus
from ..store import Store
from ..store.counting import BUCKETS_S, TrialTotal
from .lookout import Lookout
from .supervision import Supervision, SupervisionState

REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
KEPT_S = 5.0
"""Totals are not counted again before: several scrapers, or an impatient one, cost no more than one."""
UNKNOWN_ROUTE = "unknown"
"""Label of paths that are no route's: they are anybody's to invent."""

T = TypeVar("T")
Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Metrics:
    """The registry of one application, and the two figures of its requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "rankwise_http_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "rankwise_http_request_seconds",
            "From a request's arrival to the end of its answer; streams and waits are left out.",
            ("method", "route"),
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )

    def watch(self, store: Store, supervision: Supervision | None, lookout: Lookout) -> None:
        """Tell of these, too."""
        self.registry.register(_ServiceCollector(store, supervision, lookout))
        self.registry.register(_GpuCollector())


class RequestMetrics:
    """Counts and times requests by their route, as ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began_s, is_stream = int(HTTPStatus.INTERNAL_SERVER_ERROR), time.perf_counter(), False

        async def watched(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name.lower(): value for name, value in message["headers"]}
                is_stream = names.get(b"content-type", b"").startswith(b"text/event-stream")
                is_stream |= b"preference-applied" in names
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            method = scope["method"] if route != UNKNOWN_ROUTE else UNKNOWN_ROUTE
            self._metrics.requests.labels(method, route, str(status)).inc()
            if not is_stream:
                self._metrics.request_seconds.labels(method, route).observe(time.perf_counter() - began_s)


class _ServiceCollector(Collector):
    """What the database holds, and whether somebody works on it."""

    def __init__(self, store: Store, supervision: Supervision | None, lookout: Lookout) -> None:
        self._store = store
        self._supervision = supervision
        self._lookout = lookout
        self._totals = _kept(store.total_trials)
        self._studies = _kept(store.count_studies)

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry would otherwise read everything once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Read now, totals at most five seconds old."""
        info = GaugeMetricFamily("rankwise_info", "1, with the version that answers.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        is_up = self._supervision is not None and self._supervision.state in (
            SupervisionState.RUNNING,
            SupervisionState.ELSEWHERE,
        )
        yield GaugeMetricFamily("rankwise_supervisor_up", "1 while studies are worked on.", value=is_up)
        followers = self._lookout.followers
        yield GaugeMetricFamily("rankwise_followers", "Open event streams and waits.", value=followers)
        studies = GaugeMetricFamily("rankwise_studies", "Studies by their state.", labels=["state"])
        for state, count in self._studies().items():
            studies.add_metric([state.value], count)
        yield studies
        queued = self._studies()[StudyState.QUEUED]
        yield GaugeMetricFamily("rankwise_queue_length", "Studies that wait for their turn.", value=queued)
        in_use = self._store.count_devices_in_use()
        yield GaugeMetricFamily("rankwise_devices_in_use", "Devices that trials run on.", value=in_use)
        quarantined = len(self._store.list_quarantines())
        yield GaugeMetricFamily(
            "rankwise_devices_quarantined", "Devices that no trial is started on.", value=quarantined
        )
        yield from _of_trials(self._totals())


def _of_trials(totals: list[TrialTotal]) -> Iterator[Metric]:
    live = GaugeMetricFamily(
        "rankwise_trials", "Trials that have not ended, by their state.", labels=["state"]
    )
    ended = CounterMetricFamily(
        "rankwise_trials_finished", "Trials that have ended.", labels=["rung", "outcome"]
    )
    seconds = HistogramMetricFamily(
        "rankwise_trial_seconds", "Wall time of trials, from launch to end.", labels=["rung", "outcome"]
    )
    for state in (TrialState.QUEUED, TrialState.RUNNING):
        live.add_metric([state.value], sum(total.count for total in totals if total.state is state))
    for total in totals:
        if total.outcome is None:
            continue
        labels = [total.rung.value, total.outcome.value]
        ended.add_metric(labels, total.count)
        buckets = [(str(limit), float(n)) for limit, n in zip(BUCKETS_S, total.within, strict=True)]
        seconds.add_metric(labels, [*buckets, ("+Inf", float(total.timed))], total.wall_s)
    yield live
    yield ended
    yield seconds


class _GpuCollector(Collector):
    """The devices of this machine, as the driver knows them."""

    def describe(self) -> Iterator[Metric]:
        """Nothing, as above."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One reading of NVML; no samples where there is no GPU. What is unknown is left out."""
        labels = ["uuid", "name"]
        families = {
            "total_bytes": GaugeMetricFamily("rankwise_gpu_memory_bytes", "Memory of a GPU.", labels=labels),
            "used_bytes": GaugeMetricFamily(
                "rankwise_gpu_memory_used_bytes", "Memory in use, by whomever.", labels=labels
            ),
            "utilisation_percent": GaugeMetricFamily(
                "rankwise_gpu_utilisation_percent", "Time in which some kernel ran.", labels=labels
            ),
            "temperature_c": GaugeMetricFamily(
                "rankwise_gpu_temperature_celsius", "Of the chip.", labels=labels
            ),
            "power_w": GaugeMetricFamily("rankwise_gpu_power_watts", "Drawn now.", labels=labels),
        }
        healthy = GaugeMetricFamily(
            "rankwise_gpu_healthy", "1 where nothing makes a GPU unfit for measurements.", labels=labels
        )
        gpus, _ = read_gpus()
        for gpu in gpus:
            for field, family in families.items():
                value = getattr(gpu, field)
                if value is not None:
                    family.add_metric([gpu.uuid, gpu.name], value)
            healthy.add_metric([gpu.uuid, gpu.name], not gpu.health_problems)
        yield from families.values()
        yield healthy


def _kept(read: Callable[[], T]) -> Callable[[], T]:
    """What was read last, where that was less than :data:`KEPT_S` ago."""
    last: tuple[float, T] | None = None

    def reading() -> T:
        nonlocal last
        now_s = time.monotonic()
        if last is None or now_s - last[0] > KEPT_S:
            last = now_s, read()
        return last[1]

    return reading
