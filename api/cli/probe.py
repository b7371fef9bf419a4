"""``rankwise probe``: what there is to work with. Knows nothing of what the facts are used for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ...errors import InputError, StoreError
from ...optimizer.codec import to_json
from ...optimizer.domain import StudyFacts, StudyRequest
from ..units import format_bytes
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read
from .progress import describe_rows, describe_task

if TYPE_CHECKING:
    from ...home import Home
    from ...probes.profiles import GpuProcess, GpuProfile, HardwareProfile
    from ...store import Quarantine

EXAMPLES = """\
[bold]Examples[/bold]

rankwise probe

rankwise probe --model ./llama --data chats.jsonl --json
"""


def probe(
    model: Annotated[str | None, typer.Option(help="Folder with a model, or its id on the hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Data, as for recommend.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the hardware, and with --model and --data what is found in those. Measures nothing."""
    from ...probes.host import read_hardware

    if (model is None) != (data is None):
        raise InputError(
            "--model and --data go together", next_step="give both, or none for the hardware alone"
        )
    home = home_to_read()
    facts: StudyFacts | None = None
    if model is not None and data is not None:
        from ...runners.jobs import prepare_once
        from ..submission import check_request

        facts = prepare_once(home, check_request(StudyRequest(model=model, dataset=data), roots=None))
    hardware = facts.hardware if facts else read_hardware(home.root)
    quarantines = _quarantines(home)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "hardware": to_json(hardware),
                "quarantines": [to_json(each) for each in quarantines],
                "model": to_json(facts.model) if facts else None,
                "dataset": to_json(facts.dataset) if facts else None,
            }
        )
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (*_hardware_rows(hardware, quarantines), *(_facts_rows(facts) if facts else ())):
        table.add_row(name, text)
    results.print(table)


def _quarantines(home: Home) -> list[Quarantine]:
    """Of the home's database, if it has one that can be read: hardware is shown all the same."""
    from ...store import Store

    database = home.database
    if isinstance(database, Path) and not database.exists():
        return []
    try:
        with closing(Store.open(database)) as store:
            return store.list_quarantines()
    except StoreError as error:
        print_note(f"whether devices are in quarantine is not known: {error}")
        return []


def _hardware_rows(hardware: HardwareProfile, quarantines: Sequence[Quarantine]) -> Iterator[tuple[str, str]]:
    host = hardware.host
    for gpu in hardware.gpus:
        quarantined = [
            f"in quarantine since {each.since:%Y-%m-%d %H:%M} UTC: {each.reason}"
            for each in quarantines
            if each.device == gpu.uuid
        ]
        for line, text in enumerate((*_gpu_lines(gpu), *quarantined)):
            yield "" if line else f"GPU {gpu.index}", text
    if hardware.gpus and hardware.gpus[0].driver_version is not None:
        yield "driver", f"NVIDIA {hardware.gpus[0].driver_version}"
    if not hardware.gpus:
        yield "GPU", f"none: {hardware.gpu_note}"
    cores = f"{host.logical_cores} threads"
    if host.physical_cores is not None:
        cores = f"{host.physical_cores} cores, {cores}"
    yield "CPU", f"{host.cpu_model or 'unknown model'}, {cores}"
    yield "RAM", f"{format_bytes(host.ram_available_bytes)} available of {format_bytes(host.ram_total_bytes)}"
    yield "disk", f"{format_bytes(host.disk_free_bytes)} free below $RANKWISE_HOME"
    yield "system", f"{host.platform}, Python {host.python_version}"
    yield "libraries", ", ".join(f"{name} {version}" for name, version in host.libraries.items()) or "none"


def _gpu_lines(gpu: GpuProfile) -> Iterator[str]:
    """What is known of a GPU: the device, its state, its users, what is wrong with it."""
    free = "" if gpu.free_bytes is None else f", {format_bytes(gpu.free_bytes)} free"
    generation = gpu.compute_capability
    capability = "" if generation is None else f", capability {generation[0]}.{generation[1]}"
    yield f"{gpu.name}, {format_bytes(gpu.total_bytes)}{free}{capability}"
    yield gpu.uuid if gpu.pci_bus_id is None else f"{gpu.uuid}, PCI {gpu.pci_bus_id}"
    state = []
    if gpu.utilisation_percent is not None:
        state.append(f"{gpu.utilisation_percent} % busy")
    if gpu.temperature_c is not None:
        state.append(f"{gpu.temperature_c} °C")
    if gpu.power_w is not None:
        limit = "" if gpu.power_limit_w is None else f" of {gpu.power_limit_w:.0f}"
        state.append(f"{gpu.power_w:.0f}{limit} W")
    if gpu.sm_clock_hz is not None:
        highest = "" if gpu.max_sm_clock_hz is None else f" of {gpu.max_sm_clock_hz / 1e6:.0f}"
        state.append(f"clock {gpu.sm_clock_hz / 1e6:.0f}{highest} MHz")
    if state:
        yield ", ".join(state)
    if gpu.throttle_reasons:
        yield f"clock held down by: {', '.join(gpu.throttle_reasons)}"
    if gpu.processes is None:
        yield "processes: this user may not list them"
    elif gpu.processes:
        yield f"processes: {', '.join(_process(process) for process in gpu.processes)}"
    for problem in gpu.health_problems:
        yield f"unfit: {problem}"


def _process(process: GpuProcess) -> str:
    size = "memory unknown" if process.used_bytes is None else format_bytes(process.used_bytes)
    return f"{process.pid} ({size})"


def _facts_rows(facts: StudyFacts) -> Iterator[tuple[str, str]]:
    model, dataset = facts.model, facts.dataset
    yield "", ""
    yield "model", model.source
    size = f"{model.parameters:,} parameters, {format_bytes(model.weight_bytes)} of weights"
    yield "", f"{model.architecture}, {size}"
    if model.new_modules:
        yield "new", f"{', '.join(model.new_modules)}: in no weight file, will be trained"
    yield "data", dataset.source
    yield "", f"{dataset.usable_rows:,} of {dataset.rows:,} rows usable, {format_bytes(dataset.size_bytes)}"
    for note in dataset.notes:
        yield "", note
    yield "task", describe_task(facts)
    if dataset.label_counts:
        yield "labels", ", ".join(f"{label} {count:,}" for label, count in dataset.label_counts.items())
    if (lengths := dataset.lengths) is not None:
        how = "estimated" if lengths.estimated else "counted"
        yield "tokens", f"{lengths.p50} median, {lengths.p99} at 99 %, {lengths.max} at most ({how})"
    truncated = f" ({facts.truncated_rows:,} rows truncated)" if dataset.lengths is not None else ""
    yield (
        "recipe",
        (
            f"{describe_rows(facts)}{truncated}, "
            f"{facts.train_rows:,} rows to train on, {facts.heldout_rows:,} held out"
        ),
    )
