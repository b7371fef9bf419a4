"""Another trainer's file with what belongs to it: DeepSpeed's file that it names, the adapter's beside it.

Reads only the named file and these. Knows nothing of what the settings are good for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from ..optimizer.trainers.known_keys import PEFT
from ..optimizer.trainers.reading import FORMATS, Reading, read, whose, with_adapter, with_deepspeed
from ..probes.paths import nearest_names, resolve_path
from .lined_text import MAX_BYTES, Lined, Unreadable, read_lined

ADAPTER_FILE = "adapter_config.json"
LOOKED_FOR = ("training_args.json", ADAPTER_FILE)
"""In a folder, the first that is there."""

_DEEPSPEED_KEYS = ("deepspeed", "deepspeed_config_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFile:
    """A file as it was read."""

    name: str
    """As messages call it."""
    folder: Path | None
    """That it lies in; None of a text that has no place."""
    reading: Reading
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    deepspeed: Reading | None = None
    deepspeed_name: str | None = None
    adapter: Reading | None = None
    problems: tuple[str, ...] = ()
    """What could not be read beside it, each a sentence."""

    def line_of(self, key: str | None) -> int | None:
        """Where a key stands; None where it does not."""
        return None if key is None else self.lines.get(tuple(key.split(".")), self.lines.get((key,)))


def is_trainer_file(source: str) -> bool:
    """It may be a trainer's file rather than a model: YAML or JSON, and no model's configuration."""
    path = Path(source)
    return path.suffix.lower() in (".yaml", ".yml", ".json") and path.name != "config.json" and path.is_file()


def load_trainer_file(
    source: str | Path,
    *,
    format_name: str | None = None,
    roots: Sequence[Path] | None = None,
) -> TrainerFile:
    """Read a file, or the one that a folder holds.

    Args:
        source: a YAML or JSON file, or a folder with ``training_args.json`` or ``adapter_config.json``.
        format_name: one of :data:`FORMATS`; None tells it from the keys.
        roots: folders that it must lie in; None sets no restriction.

    Raises:
        InputError: it cannot be read, or it is unclear whose it is.
        PathNotAllowed: it lies elsewhere.
    """
    path = resolve_path(str(source), roots)
    if path.is_dir():
        inside = next((path / name for name in LOOKED_FOR if (path / name).is_file()), None)
        if inside is None:
            raise InputError(
                f"the folder {path} has neither {' nor '.join(LOOKED_FOR)}", next_step="name a file"
            )
        path = inside
    lined = read_lined(_text_of(path), str(source) if path.name == Path(source).name else str(path))
    return _complete(lined, str(source), path.parent, format_name, _open_beside(path.parent, roots))


def read_trainer_text(text: str, name: str, *, format_name: str | None = None) -> TrainerFile:
    """Read a text that came without a place: nothing beside it is looked for.

    Raises:
        InputError: as :func:`load_trainer_file`.
    """
    return _complete(read_lined(text, name), name, None, format_name, lambda _: None)


def _complete(
    lined: Lined,
    name: str,
    folder: Path | None,
    format_name: str | None,
    beside: Callable[[str], Lined | None],
) -> TrainerFile:
    if format_name is not None and format_name not in FORMATS:
        raise InputError(
            f"format {format_name!r:.80} is unknown", next_step=f"use one of {', '.join(FORMATS)}"
        )
    reading = read(lined.keys, format_name or whose(lined.keys))
    file = TrainerFile(name=name, folder=folder, reading=reading, lines=lined.lines)
    return _with_adapter(_with_deepspeed(file, beside), beside)


def _with_deepspeed(file: TrainerFile, beside: Callable[[str], Lined | None]) -> TrainerFile:
    """Together with DeepSpeed's settings, written in place or in the file that is named."""
    keys = file.reading.keys
    block = keys.get("deepspeed_config")
    places = (keys, block) if isinstance(block, Mapping) else (keys,)
    told = next((place[key] for place in places for key in _DEEPSPEED_KEYS if place.get(key)), None)
    if told is None:
        return file
    name = f"{file.name}, deepspeed"
    try:
        if isinstance(told, Mapping):
            lined: Lined | None = Lined({str(key): value for key, value in told.items()})
        else:
            name = str(told)
            lined = beside(name)
    except InputError as error:
        return replace(file, problems=(*file.problems, str(error)))
    if lined is None:
        return replace(file, problems=(*file.problems, f"DeepSpeed's file {name!r:.80} was not looked at"))
    own = read(lined.keys, "deepspeed")
    return replace(file, reading=with_deepspeed(file.reading, own), deepspeed=own, deepspeed_name=name)


def _with_adapter(file: TrainerFile, beside: Callable[[str], Lined | None]) -> TrainerFile:
    """Together with PEFT's file, which the Trainer's arguments have beside them."""
    if file.reading.trainer != "transformers":
        return file
    try:
        lined = beside(ADAPTER_FILE)
    except InputError as error:
        return replace(file, problems=(*file.problems, str(error)))
    if lined is None:
        return file
    adapter = read(lined.keys, PEFT)
    return replace(file, reading=with_adapter(file.reading, adapter), adapter=adapter)


def _open_beside(folder: Path, roots: Sequence[Path] | None) -> Callable[[str], Lined | None]:
    def beside(name: str) -> Lined | None:
        path = resolve_path(str(folder / name), roots)
        if not path.exists() and name == ADAPTER_FILE:
            return None
        return read_lined(_text_of(path), name)

    return beside


def _text_of(path: Path) -> str:
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}", next_step=nearest_names(path) or "name a YAML or JSON file")
        if path.stat().st_size > MAX_BYTES:
            raise Unreadable(
                f"{path} is larger than {MAX_BYTES:,} bytes", next_step="name a configuration file"
            )
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8", next_step="name a YAML or JSON file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", next_step="name another file") from None
