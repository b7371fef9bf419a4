"""A folder that PEFT's ``save_pretrained`` wrote: which adapter it holds, and for what. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelError
from ..probes.model_source import read_json_object

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
LABELS_FILE = "labels.json"
"""Names of the classes in order, as the exported script writes them beside the adapter of a classifier."""

HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight", "out_proj.weight")
"""Ends of the names of heads that are trained beside an adapter, one row a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder:
    """What there is to know of a saved adapter without loading it."""

    folder: Path
    method: str
    """PEFT's name: ``LORA``, ``IA3``, …"""
    task_type: str | None
    base: str | None
    """The base that it names."""
    base_class: str | None
    """Name of the class that it was made on; PEFT notes it where there is no task type."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the saved tensors, by name."""
    labels: tuple[str, ...]

    def head_settings(self) -> dict[str, Any]:
        """What the base's configuration must say for its head to be as large as the saved one."""
        if self.labels:
            return {
                "id2label": dict(enumerate(self.labels)),
                "label2id": {label: index for index, label in enumerate(self.labels)},
            }
        rows = {shape[0] for name, shape in self.shapes.items() if name.endswith(HEADS) and len(shape) == 2}
        is_classifier = self.task_type == "SEQ_CLS" or "Classification" in (self.base_class or "")
        return {"num_labels": rows.pop()} if is_classifier and len(rows) == 1 else {}


def read_adapter(folder: Path) -> AdapterFolder:
    """Read the configuration, and the header of the weights.

    Raises:
        ModelError: a file is missing, unreadable or a pickle.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} has no {CONFIG_FILE}", next_step=_where_else(folder))
    if not (folder / WEIGHTS_FILE).is_file():
        is_pickle = (folder / PICKLE_FILE).is_file()
        raise ModelError(
            f"{folder} has its weights in {PICKLE_FILE}, a pickle, which can run any code"
            if is_pickle
            else f"{folder} has no {WEIGHTS_FILE}, so it holds an adapter's configuration only",
            next_step="save it again with PEFT where you trust it"
            if is_pickle
            else "train it first, and name the folder that the training saved to",
        )
    config = read_json_object(folder / CONFIG_FILE)
    noted = config.get("auto_mapping") or {}
    return AdapterFolder(
        folder=folder,
        method=str(config.get("peft_type")),
        task_type=config.get("task_type"),
        base=config.get("base_model_name_or_path"),
        base_class=noted.get("base_model_class"),
        shapes=_shapes(folder / WEIGHTS_FILE),
        labels=_labels(folder / LABELS_FILE),
    )


def _where_else(folder: Path) -> str:
    """PEFT saves adapters that are not called ``default`` one folder deeper."""
    deeper = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
    if deeper:
        return f"name one of the adapters in it: {', '.join(str(folder / name) for name in deeper)}"
    return "name the folder that save_pretrained wrote"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, "np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error})", next_step="save the adapter again") from None


def _labels(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("no list of names")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read ({error})", next_step="delete it; classes will be numbered"
        ) from None
    return tuple(labels)
