"""``rankwise recommend``: runs a study from the terminal. Knows nothing of how trials are run."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError
from ...home import Home
from ...optimizer.domain import (
    Complexity,
    LossMask,
    Method,
    Objective,
    Preset,
    Quantization,
    Scoring,
    StudyRequest,
)
from ...probes.profiles import TaskKind
from .answers import AnswerForm, Form, print_recommended
from .console import print_json, print_note
from .places import home_to_work_in
from .plan import show_plan
from .progress import show_progress
from .report import Report
from .signals import stopped_by_signals

if TYPE_CHECKING:
    from ...store import Store

EXAMPLES = """\
[bold]Examples[/bold]

rankwise recommend --model ./all-MiniLM-L6-v2 --data reviews.csv

rankwise recommend --model ./llama --data chats.jsonl --memory-limit 10GiB --budget 30m --out tuned

rankwise recommend --model ./llama --data chats.jsonl --objective cost --price-per-hour 2.5 --finish-within 6h

rankwise recommend --model ./llama --data chats.jsonl --method lora --quantization nf4 --plan

rankwise recommend --model ./bert --data reviews.csv --preset balanced --preset qlora_memory

rankwise recommend --model ./bert --data reviews.csv --lora r=16 --lora target_modules=query,value

rankwise recommend --baseline axolotl.yaml --data chats.jsonl

rankwise recommend --config study.yaml --budget 30m

rankwise recommend --resume 01K5ZJ9V0M3Q8R7T6Y2X4W1N0B

rankwise recommend --remote --wait --model /models/llama --data /data/chats.jsonl --format env
"""

_PARAMETERS = {
    "dataset": "data",
    "model_arguments": "model_arg",
    "channels": "channel",
    "methods": "method",
    "quantizations": "quantization",
    "presets": "preset",
    "use_tiers": "tiers",
    "finish_limit": "finish_within",
}
"""Parameters that are called otherwise than what is asked with them."""

WITH_RESUME = {"resume", "out", "as_json", "form", "allow_remote_code", "quiet"}
"""Parameters that mean something where a study goes on as it was asked for."""

_ONLY_HERE = {"resume", "resume_or_start", "plan", "allow_remote_code"}
_ONLY_THERE = {"wait", "upload", "key"}

_default = StudyRequest(model="", dataset="")
_task_option = partial(typer.Option, rich_help_panel="What to learn")
_choice_option = partial(typer.Option, rich_help_panel="How to choose", case_sensitive=False)
_limit_option = partial(typer.Option, rich_help_panel="Limits")
_run_option = partial(typer.Option, rich_help_panel="Running and results")
_run_flag = partial(_run_option, metavar="")
_remote_option = partial(typer.Option, rich_help_panel="On a server")
_remote_flag = partial(_remote_option, metavar="")


def recommend(
    context: typer.Context,
    model: Annotated[
        str | None,
        _task_option(
            metavar="M",
            help="Folder with a model, a config.json, an id on the hub, or package.module:factory.",
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        _task_option(metavar="NAME=VALUE", help="Argument of the factory; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        _task_option(metavar="FILE", help="Study file (see rankwise init); options beside it override it."),
    ] = None,
    data: Annotated[
        str | None,
        _task_option(
            metavar="D",
            help="CSV, TSV, JSONL, Parquet, text or npz; a folder of these or of images; a hub id.",
        ),
    ] = None,
    task: Annotated[
        TaskKind | None,
        _task_option(
            metavar="TASK", case_sensitive=False, help=f"Told from the data, or {', '.join(TaskKind)}."
        ),
    ] = None,
    text_column: Annotated[
        str | None, _task_option(metavar="NAME", help="Column with the text, prompt or messages.")
    ] = None,
    context_column: Annotated[
        str | None, _task_option(metavar="NAME", help="Column with a second part of the input.")
    ] = None,
    target_column: Annotated[
        str | None, _task_option(metavar="NAME", help="Column with the text to be written.")
    ] = None,
    label_column: Annotated[
        str | None, _task_option(metavar="NAME", help="Column, or array, with the labels or numbers.")
    ] = None,
    time_column: Annotated[
        str | None,
        _task_option(metavar="NAME", help="Column that orders a series; the last texts are held out."),
    ] = None,
    group_column: Annotated[
        str | None, _task_option(metavar="NAME", help="Rows with the same value are held out together.")
    ] = None,
    channel: Annotated[
        list[str] | None,
        _task_option(metavar="NAME", help="Column with values of a series; may be repeated."),
    ] = None,
    context_length: Annotated[
        int | None, _task_option(metavar="N", help="Rows of a series that the model sees; by the model.")
    ] = None,
    prediction_length: Annotated[
        int | None, _task_option(metavar="N", help="Rows that it predicts from them; by the model.")
    ] = None,
    chat_template: Annotated[
        Path | None, _task_option(metavar="FILE", help="Jinja template in place of the tokenizer's.")
    ] = None,
    loss_mask: Annotated[
        LossMask | None,
        _task_option(
            metavar="NAME", case_sensitive=False, help=f"Learn {', '.join(LossMask)} tokens; by the task."
        ),
    ] = None,
    max_length: Annotated[
        int | None, _task_option(metavar="N", help="Tokens per row; from the data if left out.")
    ] = None,
    packing: Annotated[
        bool | None,
        _task_option("--packing/--no-packing", metavar="", help="Let short samples share rows; by the data."),
    ] = None,
    effective_batch: Annotated[
        int, _task_option(metavar="N", help="Rows per optimizer step.")
    ] = _default.effective_batch,
    epochs: Annotated[
        float, _task_option(metavar="N", help="Passes over the data in the final run.")
    ] = _default.epochs,
    objective: Annotated[
        Objective, _choice_option(metavar="NAME", help=f"What counts most: {', '.join(Objective)}.")
    ] = _default.objective,
    weights: Annotated[
        str | None, _choice_option(metavar="W", help="In its place, like speed=0.5,memory=0.1,quality=0.4.")
    ] = None,
    quality_within: Annotated[
        str | None,
        _choice_option(metavar="SHARE", help="More held-out loss than the best that may be, like 1%."),
    ] = None,
    price_per_hour: Annotated[
        float | None, _choice_option(metavar="P", help="Of a device, to know what the training costs.")
    ] = None,
    scoring: Annotated[
        Scoring, _choice_option(metavar="NAME", help=f"{' or '.join(Scoring)}, the first design's formula.")
    ] = _default.scoring,
    eval_command: Annotated[
        str | None,
        _choice_option(
            metavar="CMD",
            help="Judges what was trained: gets a folder with adapter_config.json and "
            "adapter_model.safetensors, or with the model where there is no adapter, and labels.json of "
            "classes; the last line that it prints is a number.",
        ),
    ] = None,
    eval_lower_is_better: Annotated[
        bool, _choice_option("--eval-lower-is-better", metavar="", help="Of that number.")
    ] = False,
    method: Annotated[
        list[Method] | None,
        _choice_option(metavar="NAME", help=f"Only this of {', '.join(Method)}; may be repeated."),
    ] = None,
    quantization: Annotated[
        list[Quantization] | None,
        _choice_option(metavar="NAME", help=f"Only this of {', '.join(Quantization)}; may be repeated."),
    ] = None,
    preset: Annotated[
        list[Preset] | None,
        _choice_option(metavar="NAME", help=f"Begin with this of {', '.join(Preset)}; may be repeated."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        _choice_option(metavar="KEY=VALUE", help="Begin with a LoRA of your own: r=16; may be repeated."),
    ] = None,
    baseline: Annotated[
        Path | None,
        _choice_option(
            metavar="FILE", help="What you train with now, as TRL, Axolotl, … have it: tried and compared."
        ),
    ] = None,
    only_presets: Annotated[
        bool, _choice_option("--only-presets", metavar="", help="Try nothing after the presets.")
    ] = False,
    tiers: Annotated[
        bool, _choice_option("--tiers", metavar="", help="Only the first design's few for the free memory.")
    ] = False,
    complexity: Annotated[
        Complexity | None, _choice_option(metavar="NAME", help=f"For --tiers: {', '.join(Complexity)}.")
    ] = None,
    memory_limit: Annotated[
        str | None, _limit_option(metavar="SIZE", help="Most memory a trial may take, like 10GiB.")
    ] = None,
    finish_within: Annotated[
        str | None, _limit_option(metavar="TIME", help="Most time for the whole training, like 6h.")
    ] = None,
    budget: Annotated[
        str, _limit_option(metavar="TIME", help="Time to spend, like 90s, 10m or 1h30m.")
    ] = "10m",
    max_trials: Annotated[int, _limit_option(metavar="N", help="Most trials to run.")] = _default.max_trials,
    processes: Annotated[
        int | None,
        _limit_option(
            metavar="N", help="Spread trainings over so many, one a device; free GPUs if left out."
        ),
    ] = None,
    seed: Annotated[int, _limit_option(metavar="N", help="Equal seeds make equal choices.")] = _default.seed,
    plan: Annotated[bool, _run_flag("--plan", help="Show what would run, and stop.")] = False,
    resume: Annotated[str | None, _run_option(metavar="ID", help="Go on with this study.")] = None,
    resume_or_start: Annotated[
        bool,
        _run_flag("--resume-or-start", help="Go on with a study that asked for the same, if one is left."),
    ] = False,
    out: Annotated[
        Path | None, _run_option(metavar="DIR", help="Write the files to train with here.")
    ] = None,
    as_json: Annotated[bool, _run_flag("--json", help="Print one JSON document instead of text.")] = False,
    form: AnswerForm = Form.TEXT,
    remote: Annotated[
        bool,
        _remote_flag("--remote", help="Ask the server at $RANKWISE_URL; paths are its machine's."),
    ] = False,
    wait: Annotated[bool, _remote_flag("--wait", help="Stay until the server has an answer.")] = False,
    upload: Annotated[bool, _remote_flag("--upload", help="Send the file that --data names first.")] = False,
    key: Annotated[
        str | None,
        _remote_option(metavar="KEY", help="The same key asks for the same study, however often."),
    ] = None,
    allow_remote_code: Annotated[
        bool, _run_flag("--allow-remote-code", help="Run code that comes with the model. Trust its author.")
    ] = False,
    quiet: Annotated[bool, _run_flag("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure the few configurations that matter, and recommend one of them.

    Progress goes to standard error, results to standard output. Ctrl-C keeps what was measured.
    """
    from ...runners.place import reservation
    from ...store import Store
    from ..asking import parse_arguments, read_request
    from ..following import find_unfinished
    from ..study_file import read_study_file
    from ..submission import check_request

    _refuse_contradictions(context)
    run = partial(_run, out=out, as_json=as_json, form=form, quiet=quiet, allow_remote_code=allow_remote_code)
    if resume is not None:
        _refuse_beside_resume(context)
        home = home_to_work_in(context)
        with closing(Store.open(home.database)) as store:
            run(store, resume, home=home)
        return
    options: dict[str, Any] = {
        "model": model,
        "dataset": data,
        "model_arguments": parse_arguments(model_arg or ()),
        "task": task,
        "text_column": text_column,
        "context_column": context_column,
        "target_column": target_column,
        "label_column": label_column,
        "time_column": time_column,
        "group_column": group_column,
        "eval_command": eval_command or (),
        "eval_lower_is_better": eval_lower_is_better,
        "channels": channel or (),
        "context_length": context_length,
        "prediction_length": prediction_length,
        "chat_template": chat_template,
        "loss_mask": loss_mask,
        "max_length": max_length,
        "packing": packing,
        "effective_batch": effective_batch,
        "epochs": epochs,
        "objective": objective,
        "weights": weights,
        "quality_within": quality_within,
        "price_per_hour": price_per_hour,
        "scoring": scoring,
        "methods": method or (),
        "quantizations": quantization or (),
        "presets": preset or (),
        "lora": parse_arguments(lora, what="LoRA setting") if lora else None,
        "baseline": baseline,
        "only_presets": only_presets,
        "use_tiers": tiers,
        "complexity": complexity,
        "memory_limit": memory_limit,
        "finish_limit": finish_within,
        "budget": budget,
        "max_trials": max_trials,
        "processes": processes,
        "seed": seed,
    }
    if baseline is not None:
        options = _with_baseline(context, options, baseline)
    if config is not None:
        given = (name for name in options if _is_given(context, _PARAMETERS.get(name, name)))
        options = read_study_file(config) | {name: options[name] for name in given}
    names = {"model": "--model", "dataset": "--data"}
    if missing := " and ".join(option for name, option in names.items() if options.get(name) is None):
        raise InputError(f"{missing} missing", next_step="see rankwise recommend --help")
    asked = read_request(**options)
    if remote:
        from .remote import recommend_remotely

        recommend_remotely(
            asked, upload=upload, key=key, wait=wait, form=form, as_json=as_json, out=out, quiet=quiet
        )
        return
    home = home_to_work_in(context)
    request = check_request(asked, roots=None, allow_remote_code=allow_remote_code)
    if plan:
        show_plan(home, request, as_json=as_json, allow_remote_code=allow_remote_code)
        return
    with closing(Store.open(home.database)) as store:
        study_id = find_unfinished(store, request) if resume_or_start else None
        if study_id is None:
            study_id = store.create_study(_in_time(request), reserved_for=reservation(home)).id
        else:
            print_note(f"going on with study {study_id}, which asked for the same")
        run(store, study_id, home=home)


def _in_time(request: StudyRequest) -> StudyRequest:
    """With no larger budget than the scheduler leaves time for."""
    from ..time_limit import VARIABLE, bounded_budget
    from ..units import format_seconds

    budget_s = bounded_budget(request.budget_s)
    if budget_s < request.budget_s:
        print_note(f"budget {format_seconds(budget_s)}: the job ends soon after ({VARIABLE})")
    return replace(request, budget_s=budget_s)


def _with_baseline(context: typer.Context, options: dict[str, Any], path: Path) -> dict[str, Any]:
    """The options, with model, data, rows a step and passes from the file where none is named."""
    from ..baseline import baseline_in, sources_in
    from ..trainer_files import load_trainer_file

    file = load_trainer_file(path)
    framed = {name for name in ("effective_batch", "epochs") if not _is_given(context, name)}
    kept = {name: value for name, value in options.items() if name not in framed and value is not None}
    return {**sources_in(file), **kept, "baseline": baseline_in(file)}


def _refuse_contradictions(context: typer.Context) -> None:
    """Options that exclude each other, or mean something on a server only, or only without one."""
    given = {name for name in context.params if _is_given(context, name)}
    if {"as_json", "form"} <= given:
        raise InputError("--json and --format both say how to print", next_step="keep one of them")
    if "remote" in given and (here := given & _ONLY_HERE):
        names = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in here))
        raise InputError(
            f"{names} cannot be asked of a server",
            next_step="leave it out; rankwise client recommend ID goes on with a study of a server",
        )
    if "remote" not in given and (there := given & _ONLY_THERE):
        names = ", ".join(sorted(f"--{name}" for name in there))
        raise InputError(f"{names} is for a server", next_step="add --remote, or leave it out")


def _refuse_beside_resume(context: typer.Context) -> None:
    """Options that would have no effect are no use to anybody who gave them."""
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in WITH_RESUME and _is_given(context, name)
    ]
    if given:
        raise InputError(
            f"--resume goes on with a study as it was asked for, so {', '.join(given)} would have no effect",
            next_step="leave out the rest, or start a new study: what was measured is not measured again",
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _create_folder(folder: Path) -> None:
    """Now rather than after the study: by then it would be late to learn that it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create {folder}: {error.strerror}", next_step="choose another --out"
        ) from error


def _run(
    store: Store,
    study_id: str,
    *,
    home: Home,
    out: Path | None,
    as_json: bool,
    form: Form,
    quiet: bool,
    allow_remote_code: bool,
) -> None:
    from ..time_limit import stop_after_s

    flags = {"--json": as_json, "--allow-remote-code": allow_remote_code, "--quiet": quiet}
    resume = ["rankwise", "recommend", "--resume", study_id, *([] if out is None else ["--out", str(out)])]
    resume += [] if form is Form.TEXT else ["--format", form.value]
    resume += [flag for flag, is_given in flags.items() if is_given]
    go_on = f"what was measured is kept. Go on with: {shlex.join(resume)}"
    with stopped_by_signals(go_on, after_s=stop_after_s()):
        from ..failure import failure_of
        from ..following import follow
        from ..handover import write_results

        if out is not None:
            _create_folder(out)
        with show_progress(store.get_trial, quiet=quiet) as display:
            study = follow(
                store, study_id, home, display.update, display.note, allow_remote_code=allow_remote_code
            )
    report = Report.load(store, study)
    if report.recommendation is not None and out is not None:
        report = replace(report, files=tuple(write_results(store, study_id, out)))
    if as_json:
        print_json(report.document())
    elif form is Form.TEXT:
        report.print()
    elif report.recommendation is not None:
        from ..baseline_outcome import baseline_document
        from ..documents import recommendation_of

        baseline = baseline_document(study, report.trials, report.recommendation)
        found = recommendation_of(study, report.recommendation, baseline)
        print_recommended(found, form, epochs=study.request.epochs)
    if error := failure_of(study):
        raise error
    if out is None and not quiet:
        print_note(f"files to train with: rankwise recommend --resume {study_id} --out DIR")
