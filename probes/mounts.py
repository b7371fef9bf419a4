"""On what kind of file system a path lies, and whether other machines may have it mounted too.

Reads the kernel's table of mounts. Knows nothing of what is kept there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
SHARED = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs", "ncpfs", "coda"),
        *("ceph", "lustre", "gpfs", "beegfs", "panfs", "orangefs", "pvfs2", "wekafs", "glusterfs", "gfs2"),
        *("ocfs2", "vboxsf", "prl_fs"),
    }
)
"""Types that machines share, and on which locks and shared memory do not hold between them."""
SHARED_BY_PROGRAM = re.compile(
    r"fuse\.(sshfs|ceph|cephfs|glusterfs|juicefs|s3fs|gcsfuse|rclone|mfs|moosefs|seaweedfs|blobfuse2?|goofys|"
    r"lustre|beegfs|nfs|smb.*|cernvm|cvmfs.*|dcache|weka.*|vast.*)"
)
"""The same, of file systems that a program serves."""


def file_system_of(path: Path) -> str:
    """The type of the file system that holds the path, or would hold it; empty where that is not known."""
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    return _type_of(path.absolute(), table.splitlines())


def is_shared(path: Path) -> bool:
    """Other machines may be at work in it at the same time."""
    kind = file_system_of(path)
    return kind in SHARED or SHARED_BY_PROGRAM.fullmatch(kind) is not None


def _type_of(path: Path, table: Iterable[str]) -> str:
    """Of the longest mount point above the path; of two at the same place the later hides the earlier."""
    longest, found = -1, ""
    for line in table:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = Path(_unescaped(fields[4]))
        if len(point.parts) >= longest and path.is_relative_to(point):
            longest, found = len(point.parts), after.split(" ")[0]
    return found


def _unescaped(text: str) -> str:
    """The kernel writes blanks and backslashes in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
