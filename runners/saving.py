"""What was trained, written into a folder as those who go on with it read it.

Imports nothing of rankwise: trials and the exported programs share this source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model


def save_trained(
    model: Any,
    folder: Path,
    *,
    labels: Sequence[str],
    is_made: bool,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter as PEFT does; without one the model as transformers does, or its weights alone.

    With ``adapter_config.json`` and ``adapter_model.safetensors``, the head that was trained included, there
    is a ``labels.json`` where there are classes: an adapter's configuration has no place for them.

    Args:
        model: as it was built, nothing of a loop around it.
        folder: made if missing.
        labels: of the classes, in the order of their indices.
        is_made: a factory made the model, so that it has no name on the hub.
        state: the parameters by their names, where processes share the model; None: they are the model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.create_or_update_model_card = lambda *_: None  # PEFT's is a form with nothing filled in
        # PEFT would look on the hub for a base called like the factory, to tell whether embeddings grew.
        options = {"save_embedding_layers": False} if is_made else {}
        model.save_pretrained(folder, state_dict=state, **options)
        if labels:
            (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    elif hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, state_dict=state)
    elif state is not None:
        save_file(dict(state), folder / "model.safetensors")
    else:
        save_model(model, str(folder / "model.safetensors"))
