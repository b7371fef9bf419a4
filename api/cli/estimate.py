"""``rankwise estimate``: whether a fine-tuning fits, and how fast it would be, told without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ...optimizer.domain import Method, Quantization
from ...probes.profiles import TaskKind
from ..units import format_bytes, format_seconds
from .console import EXIT_NOTHING_FITS, EXIT_TOO_CLOSE, print_json, print_note, results
from .options import AsJson
from .places import home_to_read

if TYPE_CHECKING:
    from ..response_schemas.estimates import Between, EstimateDocument

EXAMPLES = """\
[bold]Examples[/bold]

rankwise estimate ./llama-8b/config.json --batch-size 4 --seq-len 4096 --gpu A100-80GB

rankwise estimate org/model --quantization nf4 --memory-limit 24GiB --json

rankwise estimate axolotl.yaml --gpu RTX-4090 --seq-len 4096

rankwise estimate org/model --which-gpu --tokens 20000000 --epochs 3

Exit codes: 0 it fits, or no limit was given; 3 it does not fit; 4 too close to call.
"""

BAR_WIDTH = 36
"""Leaves room for name, size and share within 80 columns."""
EIGHTHS = " ▏▎▍▌▋▊▉"


def estimate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="Folder, config.json, or id on the hub; or a file of TRL, Axolotl, LLaMA-Factory …",
        ),
    ],
    task: Annotated[
        TaskKind | None,
        typer.Option(
            metavar="TASK",
            case_sensitive=False,
            help=f"What the model was made for, or {', '.join(TaskKind)}.",
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(metavar="METHOD", case_sensitive=False, help=f"One of {', '.join(Method)}.")
    ] = Method.LORA,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="Of the adapter; 16 where it has one.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(metavar="X", help="Of the adapter.")] = None,
    targets: Annotated[
        str,
        typer.Option(metavar="NAMES", help="minimal, balanced, full, or modules such as q_proj,v_proj."),
    ] = "balanced",
    rslora: Annotated[bool, typer.Option("--rslora", metavar="", help="LoRA with rsLoRA's scale.")] = False,
    dora: Annotated[bool, typer.Option("--dora", metavar="", help="LoRA with DoRA's magnitudes.")] = False,
    quantization: Annotated[
        Quantization,
        typer.Option(metavar="KIND", case_sensitive=False, help=f"One of {', '.join(Quantization)}."),
    ] = Quantization.NONE,
    double_quantization: Annotated[
        bool, typer.Option("--double-quantization", metavar="", help="Quantize the scales of 4 bits too.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="bf16, fp16, fp32; amp-bf16, amp-fp16: float32 weights under autocast."
        ),
    ] = "bf16",
    gradient_checkpointing: Annotated[
        bool,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Compute layers twice."),
    ] = True,
    attention: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="sdpa, eager, flash_attention_2; what suits the model if left out."
        ),
    ] = None,
    loss: Annotated[str, typer.Option(metavar="KIND", help="plain, chunked or liger.")] = "plain",
    optimizer: Annotated[
        str,
        typer.Option(metavar="NAME", help="adamw_torch, adamw_torch_fused, adamw_8bit, paged_adamw_8bit."),
    ] = "adamw_torch",
    batch_size: Annotated[int, typer.Option(metavar="N", help="Rows of a micro-batch on each GPU.")] = 1,
    gradient_accumulation: Annotated[
        int, typer.Option(metavar="N", help="Micro-batches of an optimizer step.")
    ] = 1,
    seq_len: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens a row, padding included; 1024, or what it reads.")
    ] = None,
    padded: Annotated[bool, typer.Option("--padded", metavar="", help="Rows differ in length.")] = False,
    packed: Annotated[bool, typer.Option("--packed", metavar="", help="Samples share a row.")] = False,
    zero_stage: Annotated[int, typer.Option(metavar="N", help="DeepSpeed's ZeRO: 0, 1, 2 or 3.")] = 0,
    fsdp: Annotated[bool, typer.Option("--fsdp", metavar="", help="FSDP's full shard.")] = False,
    offload: Annotated[
        str, typer.Option(metavar="WHAT", help="none, optimizer or all: kept on the host by ZeRO or FSDP.")
    ] = "none",
    gpus: Annotated[int, typer.Option(metavar="N", help="GPUs that train together.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Judge by this GPU, such as A100-80GB.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Judge by so much device memory, such as 24GiB.")
    ] = None,
    which_gpu: Annotated[
        bool, typer.Option("--which-gpu", metavar="", help="Look for the smallest GPU that it fits on.")
    ] = False,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Of the dataset: tells how many hours it takes.")
    ] = None,
    epochs: Annotated[float, typer.Option(metavar="X", help="Passes over the dataset.")] = 1.0,
    as_json: AsJson = False,
    allow_remote_code: Annotated[
        bool,
        typer.Option(
            "--allow-remote-code", metavar="", help="Run Python code that the model brings. Know its author."
        ),
    ] = False,
) -> None:
    """Tell what a fine-tuning needs of a GPU's memory and how fast it is. Needs no GPU and no weights.

    A training step is run on tensors without content. Of a trainer's file those settings are taken that no
    option names. Exit code 3: it does not fit; 4: too close to call.
    """
    from ...probes.model_source import is_hub_id
    from ..estimates import EstimateOptions, answer_alone, read_question
    from ..trainer_files import is_trainer_file
    from ..trainer_options import question_in

    options = EstimateOptions(
        task=task,
        method=method,
        rank=rank,
        alpha=alpha,
        targets=targets,
        rslora=rslora,
        dora=dora,
        quantization=quantization,
        double_quantization=double_quantization,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        attention=attention,
        loss=loss,
        optimizer=optimizer,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        seq_len=seq_len,
        padded=padded,
        packed=packed,
        zero_stage=zero_stage,
        fsdp=fsdp,
        offload=offload,
        gpus=gpus,
        gpu=gpu,
        memory_limit=memory_limit,
        which_gpu=which_gpu,
        tokens=tokens,
        epochs=epochs,
    )
    if is_trainer_file(model):
        given: Any = {name: value for name, value in options.items() if _is_given(context, name)}
        model, options = question_in(model, given)
    question = read_question(model, allow_remote_code=allow_remote_code, **options)
    if is_hub_id(model):
        print_note(f"Looking {model} up on the hub; its configuration is fetched, its weights are not.")
    home = home_to_read()
    document = answer_alone(home, question, allow_remote_code=allow_remote_code)
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        show(document)
    if document.fits == "no" or (which_gpu and not document.choices):
        raise typer.Exit(EXIT_NOTHING_FITS)
    if document.fits == "too-close":
        raise typer.Exit(EXIT_TOO_CLOSE)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def show(document: EstimateDocument) -> None:
    """Print an estimate for a person, the verdict first, within 80 columns."""
    results.print(verdict(document), style="bold", width=80)
    results.print()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(document):
        facts.add_row(name, text)
    results.print(facts, width=80)
    results.print("\nOn the device at the peak", style="bold")
    _print_bars(document.breakdown)
    results.print("\nAllocated at most in each phase", style="bold")
    _print_bars(document.phases)
    if document.choices:
        results.print()
        results.print(_choices_table(document), width=80)
    if document.notes:
        results.print()
    for note in document.notes:
        results.print(note, style="dim", width=80)


def verdict(document: EstimateDocument) -> str:
    """One sentence: whether it fits, and by how much."""
    needed = _sizes(document, "device_bytes")
    if document.fits is None or document.capacity_bytes is None:
        return f"Needs {needed} of device memory; no limit was given."
    of = f"of {format_bytes(document.capacity_bytes)}"
    where = "" if document.gpu is None else f" on {document.gpu}"
    match document.fits:
        case "yes":
            return f"Fits{where}: {needed} {of}."
        case "no":
            return f"Does not fit{where}: {needed} {of}."
        case _:
            return f"Too close to call{where}: {needed} {of}."


def _facts(document: EstimateDocument) -> Iterator[tuple[str, str]]:
    model, candidate = document.model, document.candidate
    yield "model", f"{model.architecture}, {model.parameters:,} parameters"
    yield "candidate", document.description
    if document.gpus > 1 or scheme_of(document) != "DDP":
        yield "divided", f"among {document.gpus} GPUs by {scheme_of(document)}"
    share = 100 * document.trainable_params / model.parameters
    percent = f"{share:.2g}" if share < 99.5 else f"{share:.0f}"
    yield "trains", f"{document.trainable_params:,} parameters ({percent} %)"
    yield (
        "memory",
        f"allocated {_sizes(document, 'peak_allocated_bytes')}, "
        f"reserved {_sizes(document, 'peak_reserved_bytes')}",
    )
    if document.capacity_bytes is not None:
        batch, longest = document.max_micro_batch, document.max_seq_len
        length = candidate.recipe.max_length
        each = "" if length is None else f" at {length:,} tokens"
        yield "largest batch", f"{batch:,}{each}" if batch else f"not even 1 is sure to fit{each}"
        if longest:
            yield "longest row", f"{longest:,} tokens at batch {candidate.micro_batch:,}"
    if document.tokens_per_second:
        each = f" on each of {document.gpus} GPUs" if document.gpus > 1 else ""
        yield "speed", f"{_range(document.tokens_per_second)} tokens/s{each}"
    if document.sent_bytes or document.offloaded_bytes:
        yield "sends", sent(document)
    if document.hours:
        yield "takes", _duration(document.hours)
    yield "libraries", ", ".join(f"{name} {version}" for name, version in document.stack.items())
    yield "worked out in", format_seconds(document.seconds_spent)


def sent(document: EstimateDocument) -> str:
    """What goes over a GPU's links in a step, and how much of its time that is if nothing hides it."""
    parts = [
        f"{format_bytes(size)} {where}"
        for size, where in (
            (document.sent_bytes, "to other GPUs"),
            (document.offloaded_bytes, "to the host and back"),
        )
        if size
    ]
    text = f"{' and '.join(parts)} a step"
    share = document.sending_share
    if share is None:
        return text
    return f"{text}: {_percent(share.low)} to {_percent(share.high)} of its time if not hidden"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def scheme_of(document: EstimateDocument) -> str:
    """What divides the model: ``ZeRO-3, all offloaded``."""
    asked = document.asked
    scheme = "FSDP" if asked["fsdp"] else f"ZeRO-{stage}" if (stage := asked["zero_stage"]) else "DDP"
    return scheme if asked["offload"] == "none" else f"{scheme}, {asked['offload']} offloaded"


def _sizes(document: EstimateDocument, name: str) -> str:
    mid, low, high = (format_bytes(getattr(document, f"{name}{end}")) for end in ("", "_low", "_high"))
    number, _, unit = low.partition(" ")
    return f"{mid} ({number if high.endswith(unit) else low}–{high})"


def _print_bars(parts: Mapping[str, int]) -> None:
    """One line a part: name, size, share of all or of the largest, bar."""
    longest = max(parts.values(), default=0) or 1
    width = max((len(name) for name in parts), default=0)
    for name, size in parts.items():
        text = name.replace("_", " ").replace("cuda", "CUDA")
        results.print(f"{text:{width}}  {format_bytes(size):>8}  {bar(size / longest)}".rstrip())


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of that share of the width, to an eighth of a character; never nothing for something."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (EIGHTHS[rest] if rest else "")


def _choices_table(document: EstimateDocument) -> Table:
    has_hours = any(choice.hours for choice in document.choices)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("fits on", no_wrap=True)
    for title in ("memory", "batch", "tokens/s", *(["takes"] if has_hours else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for choice in document.choices:
        cells = [
            choice.gpu,
            format_bytes(choice.capacity_bytes),
            f"{choice.max_micro_batch:,}" if choice.max_micro_batch else "?",
            _range(choice.tokens_per_second) if choice.tokens_per_second else "?",
        ]
        table.add_row(*cells, *([_duration(choice.hours) if choice.hours else "?"] if has_hours else []))
    return table


def _range(between: Between) -> str:
    return f"{_rounded(between.mid)} ({_rounded(between.low)}–{_rounded(between.high)})"


def _rounded(value: float) -> str:
    """Two digits: no more are known of a speed."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(hours: Between) -> str:
    factor, unit = (60, "min") if hours.high < 1 else (1, "h")
    return f"{_rounded(hours.low * factor)}–{_rounded(hours.high * factor)} {unit}"
