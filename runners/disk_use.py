"""How much a folder takes on its disk, and how much of the disk is to stay free. Knows nothing of trials."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MOST_SPARED_BYTES = 2**30
SPARED_SHARE = 0.02


def folder_bytes(folder: Path) -> int:
    """What all below a folder takes on the disk; links are not followed, what vanishes meanwhile is nil."""
    total = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total


def missing_bytes(folder: Path) -> int:
    """How much must be freed on a folder's disk before anything may write to it; 0 where there is room.

    What is spared is the last gibibyte, or 2 % of a smaller disk: the database and whoever else uses the disk
    must be able to go on.
    """
    usage = shutil.disk_usage(folder)
    return max(0, min(MOST_SPARED_BYTES, int(usage.total * SPARED_SHARE)) - usage.free)
