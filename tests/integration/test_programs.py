"""The exported programs train what the trial trained: the same tensors, the same losses.

Programs run in this process, as their text, which saves the libraries' imports; each is also run once as a
user would.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, LossMask, Method, Quantization, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.keys import derive_seed
from rankwise.optimizer.trainers.writing import training_arguments
from rankwise.probes.profiles import TaskKind, TaskProfile
from rankwise.probes.rows import read_rows
from rankwise.runners.array_samples import array_examples
from rankwise.runners.build import trainable_sha256
from rankwise.runners.ready_files import compose_program
from rankwise.runners.recipe import (
    Example,
    collate,
    count_scored,
    epoch_order,
    pack_training_rows,
    step_rows,
    training_steps,
)
from rankwise.runners.samples import encode_rows
from rankwise.runners.tokenizer import load_tokenizer
from rankwise.runners.trial.evaluation import evaluate
from rankwise.runners.trial.loop import open_session, run_steps

STEPS = 4
SPLIT: dict[str, Any] = {"seed": 0, "share": 0.1}
Sides = tuple[list[Example], list[Example]]
TRAINERS = ("train_pytorch.py", "train_transformers.py", "train_lightning.py", "train_trl.py")


@dataclass(frozen=True)
class Measured:
    """A trial, and what is written of it."""

    values: dict[str, Any]
    candidate: Candidate
    rows: list[Example]
    heldout: list[Example]
    heldout_loss: float

    @property
    def losses(self) -> list[float]:
        losses: list[float] = self.values["trial"]["first_losses"]
        return losses


def make_task(kind: TaskKind, **columns: Any) -> dict[str, Any]:
    form: dict[str, Any] = to_json(TaskProfile(kind=kind, text_column="text", **columns))
    return form


def read_sides(data: Path, task: dict[str, Any], candidate: Candidate, tokenizer: Any) -> Sides:
    """Rows to train on, packed if they are to be, and held-out ones."""
    recipe = to_json(candidate.recipe)
    if task["arrays"] is not None:
        pairs = array_examples(data, every=1, task=task, split=SPLIT)
    else:
        how = {"tokenizer": tokenizer, "task": task, "recipe": recipe, "split": SPLIT}
        encoded = encode_rows(data, every=1, **how)
        pairs = ((found.example, heldout) for found, heldout in encoded if found.example is not None)
    if candidate.recipe.packing:
        pairs = pack_training_rows(pairs, max_length=recipe["max_length"], seed=SPLIT["seed"])
    sides: Sides = ([], [])
    for example, heldout in pairs:
        sides[heldout].append(example)
    return sides


def measure(
    model: Path | str,
    data: Path,
    *,
    task: dict[str, Any],
    candidate: Candidate,
    steps: int = STEPS,
    template: str | None = None,
    factory: dict[str, Any] | None = None,
) -> Measured:
    """Train as a trial does, in this process."""
    tokenizer = None if task["arrays"] is not None else load_tokenizer(str(model))
    if template is not None:
        tokenizer.chat_template = template
    forget_accelerators()
    form = to_json(candidate)
    sides = read_sides(data, task, candidate, tokenizer)
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
        pad_id=0 if tokenizer is None else tokenizer.pad_token_id,
        seed=seed,
        total_steps=total_steps,
        on_cpu=True,
        factory=factory,
    )
    order = step_rows(len(sides[0]), effective_batch=candidate.recipe.effective_batch, seed=order_seed)
    losses = [step.loss for step in run_steps(session, sides[0], order, last=steps)]
    heldout_loss = evaluate(session, sides[1]).loss
    values = {
        "description": "a test",
        "model": str(model),
        "dataset": str(data),
        "task": task,
        "candidate": form,
        "adapter_config": config,
        "chat_template": template,
        "every_nth_row": 1,
        "has_weights": True,
        "seed": seed,
        "order_seed": order_seed,
        "split": SPLIT,
        "trust_remote_code": False,
        "factory": factory,
        "on_cpu": True,
        "checkpoint_every": 1000,
        "trial": {
            "steps": total_steps,
            "adapter_config": config,
            "first_losses": losses,
            "trainable_sha256": trainable_sha256(session.model),
        },
    }
    return Measured(values, candidate, *sides, heldout_loss)


def forget_accelerators() -> None:
    """A process has one precision, as far as accelerate goes; here many programs share it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


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
        forget_accelerators()
        namespace: dict[str, Any] = {"__name__": "program", "__file__": str(program)}
        module = type(sys)("program")
        module.__dict__.update(namespace)
        monkeypatch.setitem(sys.modules, "program", module)  # dataclasses look for it
        exec(compile(program.read_text(encoding="utf-8"), program.name, "exec"), module.__dict__)  # noqa: S102
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        code: int = module.__dict__["main"]()
        return code

    yield run
    forget_accelerators()
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


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
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
    "last-blocks of nf4": causal(
        Adapter(method=Method.LAST_BLOCKS, unfrozen=("model.layers.1",), last_blocks=1), level=NF4
    ),
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


@pytest.fixture
def check_programs(
    tmp_path: Path, run_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Run the first steps of what was measured by each program, and compare."""

    def check(measured: Measured, programs: tuple[str, ...]) -> None:
        for name in programs:
            program = write_program(tmp_path / name, name, measured)
            log = tmp_path / name / "log.jsonl"
            steps = len(measured.losses)
            code = run_here(program, "--out", tmp_path / name / "out", "--max-steps", steps, "--log", log)
            assert code == 0, name
            found = [line["loss"] for line in read_log(log)]
            assert found == pytest.approx(measured.losses, abs=1e-4), name
            told = capsys.readouterr().out
            assert ", the tensors that were measured" in told, name
            judged = re.search(rf"held-out loss ([\d.]+) on {len(measured.heldout)} rows", told)
            assert judged, name
            assert float(judged[1]) == pytest.approx(measured.heldout_loss, abs=1e-3), name

    return check


@pytest.mark.parametrize("method", CANDIDATES)
def test_programs_repeat_what_was_measured(
    method: str, tiny_llama: Path, answers: Path, check_programs: Callable[..., None]
) -> None:
    """Micro-batches score different numbers of tokens, and there is dropout."""
    task = make_task(TaskKind.PROMPT_COMPLETION, target_column="answer")
    candidate = CANDIDATES[method]
    recipe = replace(candidate.recipe, loss_mask=LossMask.COMPLETION)
    measured = measure(tiny_llama, answers, task=task, candidate=replace(candidate, recipe=recipe))
    check_programs(measured, TRAINERS)


@pytest.fixture(scope="module")
def chats(texts_jsonl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of two turns."""
    texts = [row["text"] for row in read_rows(texts_jsonl)]
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    turns = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one, other in pairwise(texts)
    ]
    path.write_text("".join(json.dumps({"text": turn}) + "\n" for turn in turns), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def packed_chats(tiny_llama: Path, chats: Path) -> Measured:
    """What the assistant says, learnt in 16-bit computing with a chunked loss and checkpoints."""
    level = Level(compute_dtype="bfloat16", loss="chunked", gradient_checkpointing=True)
    adapter = Adapter(method=Method.LORA, rank=4, alpha=8, dropout=0.1, targets=PROJECTIONS)
    candidate = causal(
        adapter,
        level,
        max_length=160,
        packing=True,
        loss_mask=LossMask.ASSISTANT,
        chat_template_sha256=hashlib.sha256(CHATML.encode()).hexdigest(),
    )
    task = make_task(TaskKind.CHAT)
    return measure(tiny_llama, chats, task=task, candidate=candidate, template=CHATML)


def test_packed_chats_are_repeated(packed_chats: Measured, check_programs: Callable[..., None]) -> None:
    assert any(row.starts is not None and len(row.starts) > 1 for row in packed_chats.rows)
    check_programs(packed_chats, TRAINERS)


def test_rows_that_are_no_text_are_repeated(tmp_path: Path, check_programs: Callable[..., None]) -> None:
    """By a module that transformers does not know, on fewer rows than a batch has: an epoch is one step."""
    generator = np.random.default_rng(0)
    series = generator.normal(size=(60, 40, 2)).astype(np.float32)
    np.savez(tmp_path / "series.npz", past_values=series[:, :32], future_values=series[:, 32:])
    form = {"inputs": [{"name": "past_values", "shape": [32, 2]}]}
    task = {**make_task(TaskKind.ARRAY_REGRESSION, label_column="future_values"), "arrays": form}
    arguments = {"channels": 2, "context": 32, "horizon": 8}
    repository = str(Path(__file__).parents[2])
    candidate = Candidate(
        adapter=Adapter(method=Method.FULL),
        level=Level(),
        recipe=Recipe(max_length=None, effective_batch=64, epochs=4),
        micro_batch=32,
        learning_rate=1e-2,
    )
    measured = measure(
        "tide",
        tmp_path / "series.npz",
        task=task,
        candidate=candidate,
        factory={"name": "examples.modules.tide:build", "folder": repository, "arguments": arguments},
    )
    check_programs(measured, TRAINERS[:3])


def run_as_user(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Isolated from this repository: what it needs must be in the file or in public packages.
    command = [sys.executable, "-I", program, *map(str, arguments)]
    return subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False)


def test_a_trainer_stops_when_asked_and_goes_on(
    tmp_path: Path, packed_chats: Measured, run_here: Callable[..., int]
) -> None:
    program = write_program(tmp_path, "train_transformers.py", packed_chats)
    command = [sys.executable, "-I", program, "--out", "out", "--log", "log.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    done = len(read_log(tmp_path / "log.jsonl"))
    assert 2 <= done < packed_chats.values["trial"]["steps"], "it should have stopped in mid-run"

    log = tmp_path / "rest.jsonl"
    assert (
        run_here(program, "--out", tmp_path / "out", "--log", log, "--resume", "--max-steps", done + 2) == 0
    )
    whole = tmp_path / "whole.jsonl"
    assert run_here(program, "--out", tmp_path / "whole", "--log", whole, "--max-steps", done + 2) == 0
    assert [line["step"] for line in read_log(log)] == [done + 1, done + 2]
    rest, expected = ([line["loss"] for line in read_log(path)] for path in (log, whole))
    assert rest == pytest.approx(expected[done:], abs=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_are_written_as_they_are_learnt(
    tmp_path: Path, packed_chats: Measured, run_here: Callable[..., int], *, packed: bool
) -> None:
    program = write_program(tmp_path, "prepare_data.py", packed_chats)
    out, saved = tmp_path / "data", tmp_path / "saved"
    arguments = ["--out", out, "--arrow", saved, *(() if packed else ("--unpacked",))]
    assert run_here(program, *arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["train.jsonl", "validation.jsonl"]
    rows, heldout = (read_log(out / name) for name in ("train.jsonl", "validation.jsonl"))
    names = {"input_ids", "attention_mask", "labels"} | ({"position_ids"} if packed else set())
    assert all(set(row) == names for row in (*rows, *heldout))
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in (*rows, *heldout))
    assert [row["input_ids"] for row in heldout] == [list(row.input_ids) for row in packed_chats.heldout]
    learnt = sum(label != -100 for row in rows for label in row["labels"])
    assert learnt == sum(count_scored(collate([row], pad_id=0)) for row in packed_chats.rows)
    if packed:
        order = list(epoch_order(len(rows), seed=packed_chats.values["order_seed"], epoch=0))
        assert [row["input_ids"] for row in rows] == [list(packed_chats.rows[at].input_ids) for at in order]
        first = collate([packed_chats.rows[order[0]]], pad_id=0)
        assert all(rows[0][name] == first[name][0].tolist() for name in ("labels", "position_ids"))
    else:
        assert len(rows) > len(packed_chats.rows)
    dataset = datasets.load_from_disk(str(saved))
    assert {name: list(dataset[name]) for name in dataset} == {"train": rows, "validation": heldout}


def test_rows_of_pairs_have_types_and_classes(
    tmp_path: Path, minilm_path: Path, run_here: Callable[..., int], reviews_csv: Path
) -> None:
    texts = [row["text"] for row in read_rows(reviews_csv)][:60]
    lines = (
        json.dumps({"text": one, "other": two, "label": "ab"[len(one) % 2]}) for one, two in pairwise(texts)
    )
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    columns = {"context_column": "other", "label_column": "label", "labels": ("a", "b")}
    adapter = Adapter(method=Method.HEAD, trained_modules=("classifier",))
    values = measure(
        minilm_path,
        data,
        task=make_task(TaskKind.TEXT_CLASSIFICATION, **columns),
        candidate=causal(adapter),
        steps=1,
    )
    program = write_program(tmp_path, "prepare_data.py", values)
    assert run_here(program, "--out", tmp_path) == 0
    rows = read_log(tmp_path / "train.jsonl")
    assert {row["labels"] for row in rows} == {0, 1}
    assert all(set(row["token_type_ids"]) == {0, 1} for row in rows)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train_trl.py", {"kind": "regression"}, "TRL's SFTTrainer trains causal .* task is regression"),
        ("prepare_data.py", {"arrays": {"inputs": []}}, "rows of the task chat are no text"),
    ],
)
def test_a_task_that_does_not_suit_is_one_message(
    tmp_path: Path,
    packed_chats: Measured,
    run_here: Callable[..., int],
    name: str,
    change: dict[str, Any],
    message: str,
) -> None:
    values = {**packed_chats.values, "task": {**packed_chats.values["task"], **change}}
    program = write_program(tmp_path, name, replace(packed_chats, values=values))
    with pytest.raises(SystemExit, match=message):
        run_here(program)


def test_a_trainer_tells_what_is_missing(
    tmp_path: Path, packed_chats: Measured, run_here: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = write_program(tmp_path, "train_transformers.py", packed_chats)
    with pytest.raises(SystemExit, match=r"no checkpoint in .*new: run without --resume"):
        run_here(program, "--out", tmp_path / "new", "--resume")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="start it without a launcher"):
        run_here(program)
    (tmp_path / "training_args.json").unlink()
    with pytest.raises(SystemExit, match=r"training_args.json: .*put the one that was written"):
        run_here(program)


def test_other_tensors_are_noticed(tmp_path: Path, packed_chats: Measured) -> None:
    """As a user would run it, where PEFT's configuration was changed."""
    values = json.loads(json.dumps(packed_chats.values))
    values["adapter_config"]["r"] = 2
    program = write_program(tmp_path, "train_trl.py", replace(packed_chats, values=values))
    done = run_as_user(program, "--max-steps", 1)
    assert done.returncode == 0, done.stderr
    assert "NOT the tensors that were measured" in done.stdout
