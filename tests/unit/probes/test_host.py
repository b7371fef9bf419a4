from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from rankwise.probes import host
from rankwise.probes.host import memory_bytes, read_hardware, read_host

MIB = 2**20


def test_this_machine_is_read(tmp_path: Path) -> None:
    found = read_host(tmp_path / "not" / "yet" / "there")
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes <= psutil.virtual_memory().total
    assert found.logical_cores >= 1
    assert found.disk_free_bytes > 0
    assert found.libraries["torch"] == metadata.version("torch")
    assert found.python_version == sys.version.split()[0]


def test_hardware_is_host_and_devices(tmp_path: Path) -> None:
    found = read_hardware(tmp_path)
    assert found.host.platform
    assert (found.gpu_note is None) == bool(found.gpus)


def test_reading_versions_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from rankwise.probes.host import LIBRARIES, read_hardware\n"
        f"read_hardware(pathlib.Path({str(tmp_path)!r}))\n"
        "assert not {*LIBRARIES} & {*sys.modules}, {*LIBRARIES} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_libraries_that_are_not_installed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LIBRARIES", ("numpy", "no-such-library"))
    assert list(read_host(tmp_path).libraries) == ["numpy"]


def test_every_library_that_a_rule_asks_for_is_looked_up() -> None:
    rules = (Path(host.__file__).parent.parent / "optimizer" / "rules.py").read_text(encoding="utf-8")
    asked = set(re.findall(r'has\("([^"]+)"\)', rules))
    assert {"flash-attn", "liger-kernel"} <= asked <= {*host.LIBRARIES}


def test_variables_that_change_how_libraries_compute_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setenv("SECRET_OMP_TOKEN", "x")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    found = read_host(tmp_path).variables
    assert (found["OMP_NUM_THREADS"], found["GOMP_SPINCOUNT"]) == ("3", "0")
    assert not {"SECRET_OMP_TOKEN", "MKL_NUM_THREADS"} & found.keys()


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("flags\t\t: fpu avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f", False),
        ("Features\t: fp asimd", None),
        ("", None),
    ],
)
def test_bfloat16_is_known_from_the_flags_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, native: bool | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Fake CPU\n{flags}\n\nmodel name\t: second\n")
    monkeypatch.setattr(host, "CPUINFO", cpuinfo)
    found = read_host(tmp_path)
    assert (found.cpu_model, found.native_bf16) == ("Fake CPU", native)


def groups(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "groups"


def limits(folder: Path, membership: str, files: dict[str, str]) -> tuple[int, int]:
    (folder / "membership").write_text(membership)
    return memory_bytes(groups(folder, files), folder / "membership")


def test_the_tightest_group_above_the_process_counts_v2(tmp_path: Path) -> None:
    found = limits(
        tmp_path,
        "0::/job/step\n",
        {
            "job/memory.max": f"{100 * MIB}\n",
            "job/memory.current": f"{60 * MIB}\n",
            "job/memory.stat": f"anon 1\ninactive_file {20 * MIB}\nactive_file 3\n",
            "job/step/memory.max": "max\n",
            "job/step/memory.current": f"{90 * MIB}\n",
        },
    )
    assert found == (100 * MIB, 60 * MIB)


def test_a_container_is_limited_by_its_mounts_root_v1(tmp_path: Path) -> None:
    found = limits(
        tmp_path,
        "5:devices:/\n4:memory,hugetlb:/docker/0123\n",
        {
            "memory/memory.limit_in_bytes": f"{100 * MIB}\n",
            "memory/memory.usage_in_bytes": f"{30 * MIB}\n",
            "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {10 * MIB}\n",
        },
    )
    assert found == (100 * MIB, 80 * MIB)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "1\n"},
        {"memory/memory.limit_in_bytes": "garbage", "memory/memory.usage_in_bytes": ""},
    ],
)
def test_without_a_limit_the_machines_memory_counts(tmp_path: Path, files: dict[str, str]) -> None:
    total, available = limits(tmp_path, "4:memory:/\n0::/\n", files)
    assert total == psutil.virtual_memory().total
    assert available > 0


def test_a_group_that_is_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    files = {"memory.max": f"{10 * MIB}\n", "memory.current": f"{11 * MIB}\n"}
    assert limits(tmp_path, "0::/\n", files) == (10 * MIB, 0)
