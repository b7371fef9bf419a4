"""Neighbours of a trial: judged from samples, and looked at through a fake driver and the real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.probes.profiles import GpuProcess, GpuProfile
from rankwise.runners.watch import DeviceWatch
from rankwise.runners.watch_samples import (
    CpuSample,
    GpuSample,
    gpu_sample,
    judge_cpu,
    judge_gpu,
    taken_s,
    worst_rate,
)

GIB = 2**30
SPIN = "while True: pass"


def cpu(own_cores: float, others_cores: float, *, stolen: float = 0.0, seconds: float = 0.5) -> CpuSample:
    return CpuSample(
        seconds=seconds,
        own_s=own_cores * seconds,
        others_s=others_cores * seconds,
        stolen_s=stolen * seconds,
    )


def gpu(**facts: Any) -> GpuSample:
    return GpuSample(**{"seconds": 0.5, "running": True, **facts})


BEFORE = gpu(seconds=0.0, running=False, own_bytes=0, others_bytes=GIB, others=frozenset({1}))


class TestCpu:
    def test_a_load_that_fits_on_idle_cores_takes_nothing(self) -> None:
        assert judge_cpu([cpu(5.0, 1.5)] * 20, 8) == ()

    def test_a_load_on_the_trials_cores_is_told_with_its_worst_time(self) -> None:
        (sentence,) = judge_cpu([cpu(2.0, 0.0)] * 20 + [cpu(0.5, 1.5)] * 10, 2)
        assert sentence == (
            "Other programs took 25% of the processor time that the trial had use for, "
            "1.5 of 2 cores in its worst 5 s."
        )

    def test_a_blip_and_a_hum_are_no_disturbance(self) -> None:
        assert judge_cpu([cpu(2.0, 0.0)] * 60 + [cpu(1.0, 1.0)] * 2, 2) == ()
        assert judge_cpu([cpu(1.9, 0.1)] * 60, 2) == ()

    def test_time_that_the_hypervisor_stole_counts_even_beside_idle_cores(self) -> None:
        (sentence,) = judge_cpu([cpu(1.0, 0.0, stolen=0.4)] * 10, 4)
        assert "Other virtual machines took 29%" in sentence

    def test_nothing_seen_is_nothing_told(self) -> None:
        assert judge_cpu([], 2) == ()

    @given(
        own=st.floats(0, 8),
        others=st.floats(0, 8),
        more=st.floats(0, 4),
        stolen=st.floats(0, 4),
        cores=st.floats(1, 8),
    )
    def test_more_foreign_load_never_takes_less(
        self, own: float, others: float, more: float, stolen: float, cores: float
    ) -> None:
        little = taken_s(cpu(own, others, stolen=stolen), cores)
        much = taken_s(cpu(own, others + more, stolen=stolen), cores)
        assert 0 <= little <= much + 1e-9
        assert much <= (others + more + stolen) * 0.5 + 1e-9

    @given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 3)), min_size=1))
    def test_the_worst_time_is_no_better_than_all(self, pairs: list[tuple[float, float]]) -> None:
        mean = sum(amount for _, amount in pairs) / sum(seconds for seconds, _ in pairs)
        highest = max(amount / seconds for seconds, amount in pairs)
        assert worst_rate(pairs) <= highest * (1 + 1e-9)
        if sum(seconds for seconds, _ in pairs) < 5:
            assert worst_rate(pairs) == pytest.approx(mean)


class TestGpu:
    def test_an_undisturbed_trial(self) -> None:
        running = [
            gpu(
                own_bytes=size * GIB,
                others_bytes=GIB + 10 * 2**20,
                others=frozenset({1}),
                others_compute=0.02,
                throttle_reasons=("power",),
            )
            for size in range(1, 9)
        ]
        assert judge_gpu([BEFORE, *running]) == ()
        assert judge_gpu([BEFORE]) == ()

    def test_a_process_that_comes_is_named_with_the_memory_that_others_took(self) -> None:
        alone = gpu(own_bytes=GIB, others_bytes=GIB, others=frozenset({1}))
        beside = gpu(own_bytes=GIB, others_bytes=3 * GIB, others=frozenset({1, 42}))
        assert judge_gpu([BEFORE, *[alone] * 10, *[beside] * 5, *[alone] * 10]) == (
            "Process 42 came onto the GPU; others took up to 2.0 GiB more of its memory.",
        )

    def test_a_process_that_only_looks_in_is_no_disturbance_unless_the_trial_ended_with_it(self) -> None:
        alone = gpu(own_bytes=GIB, others_bytes=GIB, others=frozenset({1}))
        beside = gpu(own_bytes=GIB, others_bytes=3 * GIB, others=frozenset({1, 42}))
        assert judge_gpu([BEFORE, *[alone] * 20, beside, *[alone] * 20]) == ()
        assert len(judge_gpu([BEFORE, *[alone] * 40, beside])) == 1

    def test_processes_that_were_there_may_leave_but_not_grow(self) -> None:
        left = gpu(own_bytes=GIB, others_bytes=0, others=frozenset())
        grown = gpu(own_bytes=GIB, others_bytes=2 * GIB, others=frozenset({1}))
        assert judge_gpu([BEFORE, *[left] * 10]) == ()
        assert judge_gpu([BEFORE, *[grown] * 10]) == (
            "Others took up to 1.0 GiB more of the GPU's memory than before the trial.",
        )

    def test_without_lists_what_is_left_after_the_trial_is_the_evidence(self) -> None:
        blind = [gpu()] * 10
        before = gpu(running=False, own_bytes=0, others_bytes=GIB)
        after = gpu(running=False, own_bytes=0, others_bytes=4 * GIB)
        assert judge_gpu([before, *blind]) == ()
        assert judge_gpu([before, *blind, before]) == ()
        assert judge_gpu([before, *blind, after]) == (
            "Others took up to 3.0 GiB more of the GPU's memory than before the trial.",
        )

    def test_kernels_of_a_process_that_was_there_before_count(self) -> None:
        idle, busy = gpu(others_compute=0.0), gpu(others_compute=0.8)
        assert judge_gpu([BEFORE, *[idle] * 20, busy]) == ()
        assert judge_gpu([BEFORE, *[idle] * 20, *[busy] * 20]) == (
            "Other processes kept the GPU busy for 40% of the trial's time, 80% in its worst 5 s.",
        )

    @pytest.mark.parametrize(
        ("reason", "cause"),
        [
            ("thermal", "because it was too hot"),
            ("power brake", "by its power supply"),
            ("hardware slowdown", "by its hardware protection"),
        ],
    )
    def test_a_slowdown_of_the_moment_counts_where_it_lasts(self, reason: str, cause: str) -> None:
        fast, slow = gpu(throttle_reasons=()), gpu(throttle_reasons=("power", reason))
        assert judge_gpu([BEFORE, *[fast] * 30, slow]) == ()
        assert judge_gpu([BEFORE, *[fast] * 6, *[slow] * 2]) == (
            f"The GPU was slowed down {cause} for 25% of the trial's time.",
        )

    @pytest.mark.parametrize("reason", ["power", "sync boost", "display clock"])
    def test_a_speed_that_is_always_the_same_is_no_disturbance(self, reason: str) -> None:
        assert judge_gpu([BEFORE, *[gpu(throttle_reasons=(reason,))] * 10]) == ()

    def test_only_new_health_problems_count(self) -> None:
        old = gpu(running=False, health_problems=("row pending",))
        assert judge_gpu([old, gpu(health_problems=("row pending",))]) == ()
        lost = gpu(health_problems=("row pending", "lost"))
        assert judge_gpu([old, lost, gpu()]) == ("The GPU is no longer fit for measurements: lost.",)

    @given(
        st.lists(st.integers(0, 10 * GIB), max_size=20),
        st.lists(st.booleans(), min_size=20, max_size=20),
    )
    def test_own_memory_is_never_held_against_others(self, own: list[int], listed: list[bool]) -> None:
        samples = [BEFORE]
        for size, is_listed in zip(own, listed, strict=False):
            processes = (
                GpuProcess(pid=1, used_bytes=GIB),
                *([GpuProcess(pid=7, used_bytes=size)] if is_listed else ()),
            )
            profile = GpuProfile(
                uuid="G", index=0, name="G", total_bytes=80 * GIB, used_bytes=GIB + size, processes=processes
            )
            samples.append(gpu_sample(profile, [7], running=True, compute_shares={7: 1.0}, seconds=0.5))
        assert judge_gpu(samples) == ()

    def test_under_foreign_process_ids_nobody_is_known_to_be_foreign(self) -> None:
        profile = GpuProfile(
            uuid="G",
            index=0,
            name="G",
            total_bytes=80 * GIB,
            used_bytes=9 * GIB,
            processes=(GpuProcess(pid=4321, used_bytes=8 * GIB),),
        )
        sample = gpu_sample(profile, [7], running=True, compute_shares={4321: 1.0}, seconds=0.5)
        assert (sample.own_bytes, sample.others_bytes, sample.others, sample.others_compute) == (None,) * 4


def watch_fake(folder: Path, tmp_path: Path, looks: Iterable[tuple[str, list[int]]]) -> dict[str, Any]:
    """Watch the fake driver's first device: its state and the trial's processes, look by look."""
    code = (
        "import itertools, json, os, sys, time\n"
        "from pathlib import Path\n"
        "from rankwise.probes.gpu import read_gpus\n"
        "from rankwise.runners.watch import DeviceWatch\n"
        "time.monotonic = itertools.count(step=0.5).__next__\n"
        "state = Path(os.environ['FAKE_NVML_FILE'])\n"
        "(first, _), *looks = json.loads(sys.argv[1])\n"
        "state.write_text(first)\n"
        "watch = DeviceWatch(read_gpus()[0][:1], logical_cores=2)\n"
        "for words, pids in looks:\n"
        "    state.write_text(words)\n"
        "    watch.sample(pids)\n"
        "print(json.dumps({'peak': watch.peak_bytes, 'disturbances': watch.disturbances}))"
    )
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML_FILE": str(tmp_path / "state"),
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-W", "error", "-c", code, json.dumps(list(looks))]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
    return found


ALONE = "unlisted=600 process=7:4096 computes=7:95 throttle=0x4"


class TestGpuThroughTheDriver:
    def test_a_trial_alone_is_undisturbed_and_its_peak_is_known(
        self, fake_driver: Path, tmp_path: Path
    ) -> None:
        looks = [
            ("unlisted=600 process=0:0", []),
            ("unlisted=600 process=0:0", [7]),
            (ALONE, [7, 8]),
            ("unlisted=600 process=7:5120 process=8:1024", [7, 8]),
            (ALONE, [7, 8]),
            (ALONE, []),  # ended, but the driver is not yet aware of it
        ]
        assert watch_fake(fake_driver, tmp_path, looks) == {"peak": 6 * GIB, "disturbances": []}

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (
                "unlisted=600 process=7:4096 process=9:2048",
                "Process 9 came onto the GPU; others took up to 2.0 GiB more of its memory.",
            ),
            (
                "unlisted=2648 process=7:4096",
                "Others took up to 2.0 GiB more of the GPU's memory than before the trial.",
            ),
            (
                f"{ALONE} computes=9:60",
                "Other processes kept the GPU busy for 40% of the trial's time, 40% in its worst 5 s.",
            ),
            ("unlisted=600 process=7:4096 throttle=0x48", "The GPU was slowed down because it was too hot"),
            (f"{ALONE} ecc=1", "The GPU is no longer fit for measurements: 1 memory error since"),
            ("lost-big", "The GPU is no longer fit for measurements: the driver has lost the device"),
            ("lost-after=4", "The GPU is no longer fit for measurements: the driver has lost the device"),
            ("gone", "The GPU is no longer fit for measurements: the driver no longer knows the device."),
            ("no-driver", ""),
        ],
    )
    def test_what_happens_in_mid_trial_is_told(
        self, fake_driver: Path, tmp_path: Path, words: str, expected: str
    ) -> None:
        looks = [("unlisted=600 process=0:0", []), (ALONE, [7]), (words, [7]), (words, [7])]
        told = watch_fake(fake_driver, tmp_path, looks)
        assert told["peak"] == 4 * GIB
        assert len(told["disturbances"]) == bool(expected)
        assert "".join(told["disturbances"]).startswith(expected)

    def test_without_permission_the_rest_after_the_trial_is_the_evidence(
        self, fake_driver: Path, tmp_path: Path
    ) -> None:
        hidden = "no-permission process=7:4096 unlisted="
        looks = [(f"{hidden}0", []), (f"{hidden}9000", [7]), (f"{hidden}2048", [])]
        assert watch_fake(fake_driver, tmp_path, looks) == {
            "peak": None,
            "disturbances": ["Others took up to 2.0 GiB more of the GPU's memory than before the trial."],
        }


@contextmanager
def running(*codes: str) -> Iterator[list[int]]:
    """Python programs that run meanwhile; gives their process ids."""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


class TestCpuThroughTheKernel:
    def test_neighbours_that_fill_the_machine_disturb_a_trial(self) -> None:
        cores = len(os.sched_getaffinity(0))
        with running(*[SPIN] * (2 * cores)) as pids:
            watch = DeviceWatch((), logical_cores=cores)
            for _ in range(5):
                watch.sample(pids[:cores])
                time.sleep(0.3)
        (sentence,) = watch.disturbances
        assert sentence.startswith("Other programs took ")
        assert watch.peak_bytes is None

    def test_a_trial_that_has_ended_or_not_begun_is_not_judged(self) -> None:
        cores = len(os.sched_getaffinity(0))
        watch = DeviceWatch((), logical_cores=cores)
        with running(*[SPIN] * cores) as pids:
            watch.sample(())
            time.sleep(0.3)
            watch.sample(())
        watch.sample(pids)
        assert watch.disturbances == ()
