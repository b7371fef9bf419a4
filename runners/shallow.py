"""A model's configuration with few layers, where all of its layers are alike.

Reads and writes configurations only; knows nothing of what is done with the model.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..optimizer.estimates.tape import TRACED_LAYERS
from ..probes.profiles import ModelProfile

LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<layer>\d+)(?:\.(?P<rest>.*))?$")
"""A module within a list of modules, the outermost if there are several."""

DEPTHS = re.compile(r"(num_)?(hidden_|encoder_|decoder_)?layers?|n_layers?")
"""Fields of a configuration that count layers."""


def stacks_of(model: ModelProfile) -> dict[str, int]:
    """Stack of layers → its depth, of those stacks that are deep enough to be cut and whose layers hold
    modules of the same shapes."""
    layers: defaultdict[str, defaultdict[int, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    for module in model.modules:
        if match := LAYER.match(module.name):
            shape = (match["rest"], module.kind, module.in_features, module.out_features, module.parameters)
            layers[match["stack"]][int(match["layer"])].append(shape)
    return {
        stack: len(own)
        for stack, own in layers.items()
        if len(own) > TRACED_LAYERS and all(layer == own[0] for layer in own.values())
    }


def cut_configuration(path: Path, stacks: Mapping[str, int], folder: Path) -> bool:
    """Write the model's configuration with :data:`~..optimizer.estimates.tape.TRACED_LAYERS` layers a stack.

    Only numbers that count layers are changed, and lists of one entry a layer, if those entries are equal.

    Returns:
        False, and nothing is written, where the configuration does not say how deep those stacks are, or
        says that layers differ.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    depths = set(stacks.values())
    if not stacks or not _cut(config, depths):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return True


def _cut(config: dict[str, Any], depths: set[int]) -> bool:
    """Change a configuration, and those within it, in place; whether all depths were found."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            if _cut(value, depths):
                return True
        elif isinstance(value, list) and len(value) in depths and len(value) > TRACED_LAYERS:
            if any(entry != value[0] for entry in value):
                return False
            config[name] = value[:TRACED_LAYERS]
        elif type(value) is int and value in depths and DEPTHS.fullmatch(name):
            found.add(value)
            config[name] = TRACED_LAYERS
    return found == depths
