"""Export every case, and let the trainers read the files in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.optimizer.trainers.formats import DATA_FOLDER, Format, Outline, outline
from rankwise.optimizer.trainers.writing import ExportRefused

from .cases import Case

PROGRAMS = Path(__file__).resolve().parent
CONSUMERS = Path(sys.prefix) / "consumers"
"""What `make install` puts tests/consumers.txt into."""

Exported = Outline | ExportRefused


@dataclass(frozen=True, slots=True)
class Read:
    """What became of one case."""

    case: Case
    exported: Mapping[Format, Exported]
    answers: Mapping[str, Mapping[str, Any]]
    """File name → what its reader said."""


def export_all(cases: Iterable[Case]) -> dict[Case, dict[Format, Exported]]:
    """Each case in each format, as files or as the refusal."""
    found: dict[Case, dict[Format, Exported]] = {}
    for case in cases:
        found[case] = {}
        for form in Format:
            try:
                found[case][form] = outline(case.training, form)
            except ExportRefused as refusal:
                found[case][form] = refusal
    return found


def read_all(cases: Iterable[Case], folder: Path) -> list[Read]:
    """Write the files of all cases below ``folder`` and have them read; a process a program."""
    exported = export_all(cases)
    for case, forms in exported.items():
        place = folder / "cases" / case.folder
        place.mkdir(parents=True)
        for outlined in forms.values():
            if isinstance(outlined, Outline):
                for name, text in outlined.files.items():
                    (place / name).write_text(text, encoding="utf-8")
        if case.rows is not None:
            (place / DATA_FOLDER).symlink_to(case.rows)
        about = {"family": case.family, "task": case.training.task.value}
        (place / "case.json").write_text(json.dumps(about))
    programs = ("read_axolotl", "read_llama_factory", "read_hugging_face")
    with ThreadPoolExecutor() as pool:
        axolotl, factory, others = pool.map(run, programs, [folder] * len(programs))
    reads = []
    for case, forms in exported.items():
        answers = dict(others[case.folder])
        for name, answered in (("axolotl.yaml", axolotl), ("llamafactory.yaml", factory)):
            if case.folder in answered:
                answers[name] = answered[case.folder]
        reads.append(Read(case, forms, answers))
    return reads


def run(program: str, folder: Path) -> dict[str, Any]:
    """One program over all cases."""
    out = folder / f"{program}.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(PROGRAMS), str(CONSUMERS))),
        "PYTHONWARNINGS": "ignore",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DISABLE_VERSION_CHECK": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ran = subprocess.run(
        # Imported, not run as a file: processes that datasets spawns would begin with the whole program.
        [sys.executable, "-c", f"import {program}", folder / "cases", out],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{program} failed: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found
