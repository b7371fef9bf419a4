from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.probes import mounts

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /tmp rw - tmpfs tmpfs rw
31 22 0:50 / /home rw,relatime shared:9 - nfs4 files:/home rw,vers=4.2
32 31 0:51 / /home/mine\040and\134yours rw - xfs /dev/vdb rw
33 22 0:52 / /scratch rw - lustre mds:/scratch rw
34 22 0:53 / /cloud rw - fuse.s3fs s3fs rw
35 22 0:54 / /disk rw - fuse.ext2 /dev/vdc rw
36 30 0:55 / /tmp rw - nfs files:/tmp rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind", "is_shared"),
    [
        ("/", "ext4", False),
        ("/homes", "ext4", False),
        ("/home", "nfs4", True),
        ("/home/me/.local/state/not/yet/there", "nfs4", True),
        ("/home/mine and\\yours/state", "xfs", False),
        ("/scratch/x", "lustre", True),
        ("/cloud/x", "fuse.s3fs", True),
        ("/disk/x", "fuse.ext2", False),
        ("/tmp/x", "nfs", True),
    ],
)
def test_the_longest_and_last_mount_counts(
    path: str, kind: str, is_shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    monkeypatch.setattr(mounts, "MOUNTS", table)
    assert (mounts.file_system_of(Path(path)), mounts.is_shared(Path(path))) == (kind, is_shared)


def test_no_table_is_nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert (mounts.file_system_of(tmp_path), mounts.is_shared(tmp_path)) == ("", False)


def test_this_machine_has_one() -> None:
    assert mounts.file_system_of(Path("/proc")) == "proc"
