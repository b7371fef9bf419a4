"""The exported programs train what the trial trained: the same tensors, the same losses.

Programs run in this process, as their text, which saves the libraries' imports; each is also run once as a
user would.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, LossMask, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.exports.trainer import training_arguments
from rankwise.optimizer.keys import derive_seed
from rankwise.probes.profiles import TaskKind, TaskProfile
from rankwise.probes.rows import read_rows
from rankwise.runners.build import load_tokenizer, trainable_sha256
from rankwise.runners.ready_files import compose_program
from rankwise.runners.recipe import Example, pack_training_rows, step_rows, training_steps
from rankwise.runners.samples import encode_rows
from rankwise.runners.trial.loop import open_session, run_steps

STEPS = 4
SPLIT: dict[str, Any] = {"seed": 0, "share": 0.1}
TRAINERS = ("train_pytorch.py", "train_transformers.py", "train_lightning.py", "train_trl.py")


@dataclass(frozen=True)
class Measured:
    """A trial, and what is written of it."""

    values: dict[str, Any]
    candidate: Candidate
    rows: list[Example]
    heldout: list[Example]

    @property
    def losses(self) -> list[float]:
        losses: list[float] = self.values["trial"]["first_losses"]
        return losses


def make_task(kind: TaskKind, **columns: Any) -> dict[str, Any]:
    form: dict[str, Any] = to_json(TaskProfile(kind=kind, text_column="text", **columns))
    return form


def measure(
    model: Path, data: Path, *, task: dict[str, Any], candidate: Candidate, steps: int = STEPS
) -> Measured:
    """Train as a trial does, in this process."""
    tokenizer = load_tokenizer(str(model))
    form = to_json(candidate)
    encoded = encode_rows(data, every=1, tokenizer=tokenizer, task=task, recipe=form["recipe"], split=SPLIT)
    pairs = ((found.example, heldout) for found, heldout in encoded if found.example is not None)
    if candidate.recipe.packing:
        pairs = pack_training_rows(pairs, max_length=candidate.recipe.max_length, seed=SPLIT["seed"])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example, heldout in pairs:
        sides[heldout].append(example)
    total_steps = training_steps(len(sides[0]), form["recipe"])
    config = adapter_config(
        candidate, task_kind=TaskKind(task["kind"]), base_model=str(model), total_steps=total_steps
    )
    seed, order_seed = derive_seed(0, "model"), derive_seed(0, "order")
    session = open_session(
        str(model),
        task=task,
        candidate=form,
        adapter_config=config,
        pad_id=tokenizer.pad_token_id,
        seed=seed,
        total_steps=total_steps,
        on_cpu=True,
    )
    order = step_rows(len(sides[0]), effective_batch=candidate.recipe.effective_batch, seed=order_seed)
    losses = [step.loss for step in run_steps(session, sides[0], order, last=steps)]
    values = {
        "description": "a test",
        "model": str(model),
        "dataset": str(data),
        "task": task,
        "candidate": form,
        "adapter_config": config,
        "chat_template": None,
        "every_nth_row": 1,
        "has_weights": True,
        "seed": seed,
        "order_seed": order_seed,
        "split": SPLIT,
        "trust_remote_code": False,
        "factory": None,
        "on_cpu": True,
        "checkpoint_every": 1000,
        "trial": {
            "steps": total_steps,
            "adapter_config": config,
            "first_losses": losses,
            "trainable_sha256": trainable_sha256(session.model),
        },
    }
    return Measured(values, candidate, *sides)


def write_program(folder: Path, name: str, measured: Measured) -> Path:
    """The program, with the settings that transformers' Trainer reads beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = training_arguments(measured.candidate, seed=measured.values["seed"], on_cpu=True)
    (folder / "training_args.json").write_text(json.dumps(settings), encoding="utf-8")
    program = folder / name
    program.write_text(compose_program(name, measured.values), encoding="utf-8")
    return program


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run a program's text in this process; returns its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(program: Path, *arguments: object) -> int:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        namespace: dict[str, Any] = {"__name__": "program", "__file__": str(program)}
        module = type(sys)("program")
        module.__dict__.update(namespace)
        monkeypatch.setitem(sys.modules, "program", module)  # dataclasses look for it
        exec(compile(program.read_text(encoding="utf-8"), program.name, "exec"), module.__dict__)  # noqa: S102
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        code: int = module.__dict__["main"]()
        return code

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def causal(adapter: Adapter, level: Level = Level(), **recipe: Any) -> Candidate:  # noqa: B008 - frozen
    return Candidate(
        adapter=adapter,
        level=level,
        recipe=Recipe(**{"max_length": 48, "effective_batch": 8, "epochs": 1, **recipe}),
        micro_batch=4,
        learning_rate=1e-2,
    )


PROJECTIONS = ("q_proj", "v_proj")
NF4 = Level(
    quantization=Quantization.NF4, double_quantization=True, weight_dtype="bfloat16", compute_dtype="bfloat16"
)
CANDIDATES = {
    "lora": causal(Adapter(method=Method.LORA, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS)),
    "dora": causal(
        Adapter(method=Method.LORA, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS, use_dora=True)
    ),
    "adalora": causal(
        Adapter(method=Method.ADALORA, rank=2, initial_rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS)
    ),
    "ia3": causal(
        Adapter(method=Method.IA3, targets=("k_proj", "v_proj", "down_proj"), feedforward=("down_proj",))
    ),
    "qlora": causal(
        Adapter(method=Method.LORA, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS), level=NF4
    ),
    "last-blocks": causal(Adapter(method=Method.LAST_BLOCKS, unfrozen=("model.layers.1",), last_blocks=1)),
    "full": causal(Adapter(method=Method.FULL)),
}


@pytest.fixture(scope="module")
def answers(texts_jsonl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with completions, of which only these are learnt: micro-batches score different numbers."""
    rows = (row["text"] for row in read_rows(texts_jsonl))
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    lines = [json.dumps({"text": text[: len(text) // 2], "answer": text[len(text) // 2 :]}) for text in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", CANDIDATES)
def test_programs_repeat_what_was_measured(
    method: str,
    tmp_path: Path,
    tiny_llama: Path,
    answers: Path,
    run_here: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = make_task(TaskKind.PROMPT_COMPLETION, target_column="answer")
    candidate = CANDIDATES[method]
    recipe = replace(candidate.recipe, loss_mask=LossMask.COMPLETION)
    measured = measure(tiny_llama, answers, task=task, candidate=replace(candidate, recipe=recipe))
    for name in TRAINERS:
        program = write_program(tmp_path / name, name, measured)
        log = tmp_path / name / "log.jsonl"
        code = run_here(program, "--out", tmp_path / name / "out", "--max-steps", STEPS, "--log", log)
        assert code == 0, name
        found = read_log(log)
        assert [line["loss"] for line in found] == pytest.approx(measured.losses, abs=1e-3), name
        assert ", the tensors that were measured" in capsys.readouterr().out, name
