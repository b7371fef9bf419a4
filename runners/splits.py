"""Which share of rows to hold out, so that of few rows just as many are held out as should be.

Knows nothing of what rows are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from ..errors import DatasetError

EXACT_SPLIT_ROWS = 1000
"""Up to so many rows, how many are held out is not left to chance."""


def exact_share(keys: Mapping[str, int], share: float, *, seed: int, source: str) -> float:
    """A share between two hashes of rows, that holds out just as many as ``share`` should, or fewer.

    Fewer, since rows with the same input stay together.

    Args:
        keys: what :func:`.recipe.is_heldout` hashes of a row → rows that have it.

    Raises:
        DatasetError: most rows have the same input, and would all be held out.
    """
    hashes: Counter[float] = Counter()
    for key, number in keys.items():
        hashes[split_hash(key, seed=seed)] += number
    groups = sorted(hashes.items())
    found = sum(count for _, count in groups)
    heldout, best = 0, 0.0
    for (at, count), (following, _) in pairwise(groups):
        heldout += count
        if best and heldout > share * found:
            break
        best = (at + following) / 2
        if 2 * heldout > found + 1:
            raise DatasetError(
                f"{source} would hold out {heldout} of {found} rows: so many have the same input, "
                "and such rows stay together",
                next_step="remove duplicates, or pass another --seed",
            )
    return best or share


def split_hash(text: str, *, seed: int) -> float:
    """Where a row stands between 0 and 1: :func:`.recipe.is_heldout` holds it out below the share."""
    value = hashlib.sha256(f"{seed}\0{text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(value[:8], "big") / 2**64
