"""Talking to NVML: a session with the driver, and questions it may refuse. Knows nothing of what is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pynvml

UNUSABLE = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "the driver has lost the device, it fell off the bus: restart the machine",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the device cannot be used until it is reset",
}
"""Refusals that say something about the device itself, as sentences."""


@contextmanager
def session() -> Iterator[None]:
    """Hold the driver's library open.

    Raises:
        pynvml.NVMLError: there is no driver that can be talked to.
    """
    pynvml.nvmlInit()
    try:
        yield
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class Questions:
    """Questions about one device, each of which this device, driver or user may be refused an answer to."""

    def __init__(self) -> None:
        self.problems: tuple[str, ...] = ()
        """What refusals so far said about the device, from :data:`UNUSABLE`."""

    def ask(self, query: Callable[..., Any], *arguments: Any) -> Any:
        """NVML's answer, or None where there is none."""
        try:
            return query(*arguments)
        except pynvml.NVMLError as error:
            problem = UNUSABLE.get(error.value)
            if problem is not None and problem not in self.problems:
                self.problems += (problem,)
            return None
