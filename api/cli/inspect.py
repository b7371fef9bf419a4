"""``rankwise inspect``: what a model is made of, and what each method would train of it. Measures nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ...probes.profiles import TaskKind
from ..units import format_bytes
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read

if TYPE_CHECKING:
    from ...optimizer.domain import Adapter
    from ...probes.profiles import HardwareProfile, ModelProfile
    from ...runners.jobs import Inspection
    from ..inspection import ModuleGroup, Trainable

EXAMPLES = """\
[bold]Examples[/bold]

rankwise inspect ./all-MiniLM-L6-v2

rankwise inspect ./llama-8b/config.json --task chat

rankwise inspect org/model --json

rankwise inspect lab.models:tiny --model-arg depth=4

rankwise inspect lab.models:tiny --targets head --targets "['dense', 'msa']" --targets attention@-4
"""

SHOWN_RANK = 16
"""Of the ranks that are tried, the one nearest to this is shown; ``--json`` has all."""

_NUMBER = re.compile(r"\b\d+\.")


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder, config.json, id on the hub, or package.module:factory."
        ),
    ],
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of the factory; may be repeated."),
    ] = None,
    task: Annotated[
        TaskKind | None,
        typer.Option(
            metavar="TASK",
            case_sensitive=False,
            help=f"What the model was made for, or {', '.join(TaskKind)}.",
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="What would be adapted there: names, ends or parts of names, re:PATTERN, all-linear, roles "
            "such as attention or head, with @8-11 for layers; may be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
    allow_remote_code: Annotated[
        bool,
        typer.Option(
            "--allow-remote-code", metavar="", help="Run Python code that the model brings. Know its author."
        ),
    ] = False,
) -> None:
    """Show what a model is made of, and which methods it takes, found by trying each.

    Reads the configuration and the headers of weight files; a factory is called. Measures nothing.
    """
    from ...probes.host import read_hardware
    from ...probes.model_source import is_hub_id
    from ...runners.jobs import inspect_once
    from ..asking import parse_arguments
    from ..inspection import inspection_document

    if is_hub_id(model):
        print_note(f"Looking {model} up on the hub; its configuration is fetched, its weights are not.")
    home = home_to_read()
    inspection = inspect_once(
        home,
        model,
        task=task,
        arguments=parse_arguments(model_arg or ()),
        allow_remote_code=allow_remote_code,
    )
    hardware = read_hardware(home.root)
    if as_json:
        print_json(inspection_document(inspection, hardware, targets or ()))
    elif targets:
        _show_targets(inspection, targets)
    else:
        _show(inspection, hardware)


def _show(inspection: Inspection, hardware: HardwareProfile) -> None:
    from ..inspection import module_groups, what_trains

    model = inspection.model
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(inspection):
        facts.add_row(name, text)
    results.print(facts)
    results.print()
    results.print(_groups_table(model, module_groups(model)))
    results.print()
    verdicts, remarks = _verdicts_table(inspection)
    results.print(verdicts)
    for number, remark in enumerate(remarks, start=1):
        results.print(Text(f"[{number}] {remark}"))
    if inspection.tried_with is None:
        results.print(
            "\nNo input was found that the module runs with: give it an attribute example_inputs "
            "(argument name → tensor), and steps are tried too."
        )
    if model.factory is not None:
        return
    results.print()
    rows = what_trains(inspection, hardware)
    results.print(_trainable_table(model, rows))
    if not any(row.adapter.target_set == "minimal" for row in rows):
        results.print("\nWithout queries and values to tell apart, adapters sit on all linear layers.")
    results.print("\nAll ranks and variants: --json. What a study would try: recommend --plan.")


def _show_targets(inspection: Inspection, targets: Sequence[str]) -> None:
    """One row for each choice, with what LoRA trains at each rank."""
    from ..inspection import TARGET_RANKS, target_options

    options = target_options(inspection, targets)
    table = _table("targets", "adapters", *(f"r={rank}" for rank in TARGET_RANKS), "modules")
    for option in options:
        where = option.selection.where
        counts = [
            f"{_short(count)} ({_share(count, inspection.model)})" for count in option.parameters.values()
        ]
        names = where.pattern or ", ".join(_shortened((*where.modules, *where.parameters)))
        table.add_row(option.selection.written, str(option.adapters), *counts, names)
    results.print(table)
    full = inspection.model.parameters
    results.print(f"\nLoRA's parameters; full fine-tuning trains {_short(full)}.")
    for option in options:
        for warning in option.selection.warnings:
            print_note(f"{option.selection.written}: {warning}")


def _facts(inspection: Inspection) -> Iterator[tuple[str, str]]:
    from ..inspection import bytes_by_dtype, expert_parameters

    model = inspection.model
    yield "model", model.source + (f" at {model.revision[:12]}" if model.revision else "")
    yield "", f"{model.architecture} ({model.model_type})"
    if inspection.task is not None:
        yield "task", f"{inspection.task.kind}: {inspection.task.reason}"
    yield "parameters", f"{model.parameters:,}"
    if model.factory is not None:
        yield "takes", ", ".join(model.forward_arguments)
        yield "tried with", inspection.tried_with or "no input that it runs with"
        return
    if model.has_weights:
        kinds = ", ".join(f"{format_bytes(size)} {dtype}" for dtype, size in inspection.stored_bytes.items())
        yield "stored", kinds
    elif model.revision:
        yield "stored", "weights were not fetched"
    else:
        yield "stored", "no weights here: trials would run on random ones, and measure no quality"
    yield (
        "in memory",
        ", ".join(f"{format_bytes(size)} {name}" for name, size in bytes_by_dtype(model).items()),
    )
    shape = {"layers": model.layers, "wide": model.hidden_size, "positions": model.max_positions}
    yield "shape", ", ".join(f"{size:,} {name}" for name, size in shape.items() if size is not None)
    if experts := expert_parameters(model):
        yield "experts", f"{experts:,} parameters ({_share(experts, model)}), which are not quantized"
    yield "attention", ", ".join(model.attention_kernels)
    yield "packing", "yes, samples that share a row stay apart" if model.supports_packing else "no"
    yield "checkpointing", "yes" if model.supports_gradient_checkpointing else "no"
    if model.new_modules:
        where = "in no weight file" if model.has_weights else "not part of the configuration"
        yield "new", f"{', '.join(model.new_modules)}: {where}, trained from scratch"
    if model.runs_remote_code:
        yield "code", "runs Python code of its own"


def _groups_table(model: ModelProfile, groups: Iterable[ModuleGroup]) -> Table:
    table = _table("role", "count", "in→out", "parameters", "share", "name")
    rest = model.parameters
    for group in groups:
        rest -= group.parameters
        matrices = "" if group.matrices == 1 else f"{group.matrices}×"
        names = dict.fromkeys(_within_layer(name) for name in group.names)
        table.add_row(
            group.role if group.role != "other" else group.kind,
            str(group.count),
            f"{matrices}{group.in_features}→{group.out_features}",
            _short(group.parameters) if group.parameters else "tied",
            _share(group.parameters, model) if group.parameters else "",
            ", ".join(names),
        )
    table.add_row("rest", "", "", _short(rest), _share(rest, model), "norms, …")
    return table


def _verdicts_table(inspection: Inspection) -> tuple[Table, list[str]]:
    """One row for each method that was tried, and the remarks that rows refer to by number."""
    table = _table("method", "fits", "trains", "share", "on")
    told = None
    remarks: list[str] = []
    for verdict in inspection.verdicts:
        count, sits_on = verdict.trainable_params, verdict.where
        names = (*sits_on.modules, *sits_on.parameters, *sits_on.trained)
        where = sits_on.pattern or ", ".join(_shortened(names))
        shown = "as above" if where and where == told else where
        told = where or told
        if verdict.reason is not None:
            if verdict.reason not in remarks:
                remarks.append(verdict.reason)
            shown = f"{shown} [{remarks.index(verdict.reason) + 1}]".lstrip()
        table.add_row(
            verdict.name,
            verdict.support.value,
            "—" if count is None else _short(count),
            "" if count is None else _share(count, inspection.model),
            Text(shown),
        )
    return table, remarks


def _shortened(names: Iterable[str]) -> tuple[str, ...]:
    """Names with ``*`` for numbers, each form once."""
    return tuple(dict.fromkeys(_NUMBER.sub("*.", name) for name in names))


def _trainable_table(model: ModelProfile, rows: Iterable[Trainable]) -> Table:
    """One row for each method and target set, at the rank nearest to the shown one."""
    nearest: dict[tuple[str, str], Trainable] = {}
    for row in rows:
        adapter = row.adapter
        key = (adapter.method, adapter.target_set)
        if not adapter.use_dora and (key not in nearest or _distance(row) < _distance(nearest[key])):
            nearest[key] = row
    table = _table("method", "targets", "trains", "share", "which are")
    told: dict[str, str] = {}
    for row in nearest.values():
        adapter = row.adapter
        size = "" if adapter.rank is None else f" {'b' if adapter.method == 'oft' else 'r'}={adapter.rank}"
        if row.parameters is None:
            table.add_row(f"{adapter.method}{size}", "", "—", "", row.refusal)
            continue
        where = ", ".join(_shortened(_targets(adapter)))
        table.add_row(
            f"{adapter.method}{size}",
            adapter.target_set if adapter.method.has_adapter else "parts" if where else "all",
            _short(row.parameters),
            _share(row.parameters, model),
            "as above" if told.get(adapter.target_set) == where else where,
        )
        told[adapter.target_set] = where
    return table


def _table(*columns: str) -> Table:
    """Text in the first column and the last, which may wrap; the rest as numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns[:-1]:
        is_text = column in ("role", "method", "targets", "fits")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    return table


def _targets(adapter: Adapter) -> tuple[str, ...]:
    if adapter.method.unfreezes:
        return adapter.trained_parts
    return (*adapter.targets, *adapter.target_parameters)


def _distance(row: Trainable) -> int:
    return abs((row.adapter.rank or 0) - SHOWN_RANK)


def _within_layer(name: str) -> str:
    """What follows the layer's number; the last part of a name without one."""
    _, layer, rest = name.rpartition("*.")
    return rest if layer else name.rpartition(".")[2]


def _short(count: int) -> str:
    """Three digits: ``35,136``, ``28.3 M``, ``1.88 B``."""
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e6:.3g} M" if count < 9.995e8 else f"{count / 1e9:.3g} B"


def _share(part: int, model: ModelProfile) -> str:
    percent = 100 * part / max(1, model.parameters)
    return "< 0.01 %" if 0 < percent < 0.01 else f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"
