"""A model's configuration with few layers, where all of its layers are alike but for the first.

Reads and writes configurations only; knows nothing of what is done with the model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..optimizer.estimates.tape import TRACED_LAYERS
from ..probes.attention import CANNOT_BUILD
from ..probes.profiles import ModelProfile
from .dry_run import LAYER

DEPTHS = re.compile(r"(num_)?(hidden_|encoder_|decoder_)?layers?|n_layers?")
"""Fields of a configuration that count layers."""


def stacks_of(model: ModelProfile) -> dict[str, int]:
    """Stack of layers → its depth, of those stacks that are deep enough to be cut and whose layers hold
    modules of the same shapes.

    The first may differ, as it is not repeated: T5's holds what all of them know of positions, DeepSeek's
    has no experts.
    """
    return {
        stack: len(own)
        for stack, own in _shapes(model).items()
        if len(own) > TRACED_LAYERS and all(shapes == own[1] for layer, shapes in own.items() if layer)
    }


def begins_like_the_rest(model: ModelProfile) -> bool:
    """Whether the first layer of each stack holds modules of the same shapes as the second."""
    return all(own.get(0) == own.get(1) for own in _shapes(model).values())


def _shapes(model: ModelProfile) -> Mapping[str, Mapping[int, list[tuple[Any, ...]]]]:
    """Stack of layers → number of the layer → what its modules are like."""
    layers: defaultdict[str, defaultdict[int, list[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(list))
    for module in model.modules:
        if match := LAYER.match(module.name):
            shape = (match["rest"], module.kind, module.in_features, module.out_features, module.parameters)
            layers[match["stack"]][int(match["layer"])].append(shape)
    return layers


def cut_configuration(
    path: Path, stacks: Mapping[str, int], folder: Path, *, layers: int = TRACED_LAYERS
) -> bool:
    """Write the model's configuration with so many layers a stack.

    Only numbers that count layers are changed, and lists of one entry a layer. Code that comes with the
    model is written too.

    Returns:
        False where the configuration does not say how deep those stacks are, or transformers does not read
        the cut one as it does the whole: layers that it derives from others may not be among the first.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    depths = set(stacks.values())
    if not stacks or not _cut(config, depths, layers):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for code in path.glob("*.py"):
        shutil.copy(code, folder)
    return _reads_alike(path, folder, depths, layers)


def _cut(config: dict[str, Any], depths: set[int], layers: int) -> bool:
    """Change a configuration, and those within it, in place; whether all depths were found."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            if _cut(value, depths, layers):
                return True
        elif isinstance(value, list) and len(value) in depths and len(value) > layers:
            config[name] = value[:layers]
        elif type(value) is int and value in depths and DEPTHS.fullmatch(name):
            found.add(value)
            config[name] = layers
    return found == depths


def _reads_alike(path: Path, folder: Path, depths: set[int], layers: int) -> bool:
    """Whether, of all that transformers lists layer by layer, the cut configuration has what is repeated.

    Where the second and the third layer differ, as by turns, their tapes have to be the same: a third kind
    of layer would go unseen. Of two layers nothing is repeated, and all kinds have to be among them.
    """
    try:
        whole, cut = (AutoConfig.from_pretrained(each, local_files_only=True) for each in (path, folder))
    except CANNOT_BUILD:
        return False
    few = dict(_lists(cut.to_dict()))
    return all(
        name in few
        and few[name][:1] == kinds[:1]
        and all(kind in (few[name][1 : layers - 1] or few[name]) for kind in kinds[1:] + few[name][1:])
        for name, kinds in _lists(whole.to_dict())
        if len(kinds) in depths
    )


def _lists(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Name → list, of all in a configuration and in those within it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _lists(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", value
