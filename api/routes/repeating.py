"""``Idempotency-Key``: a request that is sent again does nothing again. Knows nothing of what is asked for.

After the IETF's draft: the same key with another request is answered 422.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Header

REPLAYED = "Idempotent-Replayed"
"""Header of an answer that tells of what an earlier request did."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by the client, a new one for each study: the same request sent again within a "
        "day makes no second study.",
    ),
]


def fingerprint(body: bytes) -> str:
    """What tells two requests apart: their bodies, byte for byte."""
    return hashlib.sha256(body).hexdigest()
