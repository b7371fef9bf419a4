"""What tests of several rooms together share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..warm_python import WarmPython, warm_python


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Runs programs in an interpreter of their own that has the libraries loaded."""
    with warm_python() as found:
        yield found
