"""What is wrong with a model's ``config.json``, as far as no library need be asked. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ModelError

_LIMITS = tuple(
    (re.compile(names), least, most)
    for names, least, most in (
        (r"num_hidden_layers|num_layers|n_layers?", 1, 1_000),
        (r"\w+_layers", 0, 1_000),
        (r"hidden_size|embedding_size|d_model|dim|n_embd|head_dim", 1, 200_000),
        (r"intermediate_size|(\w+_)?ffn_dim|d_ff|hidden_dim|n_inner", 1, 2_000_000),
        (r"num_(attention|key_value)_heads|n_heads?|num_(local_)?experts|n_routed_experts", 1, 20_000),
        (r"vocab_size|max_position_embeddings|n_positions|n_ctx|num_labels", 1, 20_000_000),
        (r"image_size|patch_size|num_channels", 1, 100_000),
    )
)
"""(fields of config.json, least, most): far beyond all published models, and far below what would take
minutes or gigabytes to build without weights."""

_LISTS = ("auto_mappings.py", "configuration_auto.py")
"""Files of transformers (5.23, in ``models/auto``) with the model types that it knows, as quoted keys."""
_KEY = re.compile(r'"([\w.-]+)"')


def check_model_type(config: Mapping[str, Any]) -> None:
    """Refuse a type that the installed transformers does not know, unless it comes with code of its own.

    Importing transformers to ask takes seconds. Where its lists are not found, nothing is refused.

    Raises:
        ModelError: with the names that come near.
    """
    model_type, known = config.get("model_type"), known_model_types()
    if not isinstance(model_type, str) or "auto_map" in config or not known or model_type in known:
        return
    near = difflib.get_close_matches(model_type, known, n=3)
    raise ModelError(
        f"transformers {version('transformers')} has no model of type {model_type[:80]!r} (model_type in "
        "config.json)",
        next_step=(f"did you mean {' or '.join(near)}? " if near else "")
        + "`pip install --upgrade transformers` gets the newest models",
    )


@cache
def known_model_types() -> frozenset[str]:
    """All that is quoted in those lists: every model type, and more; empty without transformers."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    folder = Path(spec.origin).parent / "models" / "auto"
    texts = [(folder / name).read_text("utf-8") for name in _LISTS if (folder / name).is_file()]
    return frozenset(key for text in texts for key in _KEY.findall(text))


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes that would keep the machine busy before anything else can object to them.

    Raises:
        ModelError: a size is absurd, or the weights are quantized already.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            check_sizes(value)
        if name == "quantization_config":
            raise ModelError(
                "the model's weights are already quantized (quantization_config in config.json)",
                next_step="name the model that they were made from; rankwise tries quantization itself",
            )
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for names, least, most in _LIMITS:
            if names.fullmatch(name):
                if not least <= value <= most:
                    raise ModelError(
                        f"config.json has {name} = {value}, which is not from {least} to {most}",
                        next_step="correct config.json, or download the model again",
                    )
                break
