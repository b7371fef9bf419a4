"""The exported train.py, run as a user would: it repeats what was measured, or says so, and it resumes.

The first losses come from a real trial in this process's own loop; the script is a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, T5Config, T5ForConditionalGeneration

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, LossMask, Method, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.keys import derive_seed
from rankwise.optimizer.trainers.writing import deepspeed_config
from rankwise.probes.profiles import TaskKind, TaskProfile
from rankwise.probes.rows import read_rows
from rankwise.runners.merging import merge_adapter
from rankwise.runners.ready_files import compose_program
from rankwise.runners.recipe import pack_training_rows, step_rows
from rankwise.runners.samples import encode_rows
from rankwise.runners.tokenizer import load_tokenizer
from rankwise.runners.trial.loop import open_session, run_steps

from ..warm_python import WarmPython

STEPS = 20
SPLIT: dict[str, Any] = {"seed": 0, "share": 0.1}
CANDIDATE = Candidate(
    adapter=Adapter(
        method=Method.LORA,
        rank=4,
        alpha=8,
        dropout=0.1,
        targets=("query", "value"),
        trained_modules=("classifier",),
    ),
    level=Level(),
    recipe=Recipe(max_length=32, effective_batch=8, epochs=1),
    micro_batch=8,
    learning_rate=1e-2,
)
LLAMA_LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_task(kind: TaskKind, **columns: Any) -> dict[str, Any]:
    form: dict[str, Any] = to_json(TaskProfile(kind=kind, text_column="text", **columns))
    return form


TASK = make_task(TaskKind.TEXT_CLASSIFICATION, label_column="label", labels=("negative", "positive"))


def make_values(
    model: Path,
    data: Path,
    *,
    task: dict[str, Any] = TASK,
    candidate: Candidate = CANDIDATE,
    steps: int = STEPS,
    every: int = 1,
    template: str | None = None,
) -> dict[str, Any]:
    """What the script is given after a trial, which is run here."""
    tokenizer = load_tokenizer(str(model))
    if template is not None:
        tokenizer.chat_template = template
    form = to_json(candidate)

    def config(total_steps: int) -> dict[str, Any] | None:
        return adapter_config(
            candidate, task_kind=TaskKind(task["kind"]), base_model=str(model), total_steps=total_steps
        )

    values: dict[str, Any] = {
        "description": "a test",
        "model": str(model),
        "dataset": str(data),
        "task": task,
        "candidate": form,
        "adapter_config": config(100),
        "chat_template": template,
        "every_nth_row": every,
        "has_weights": True,
        "seed": derive_seed(0, "model"),
        "order_seed": derive_seed(0, "order"),
        "split": SPLIT,
        "trust_remote_code": False,
        "factory": None,
        "on_cpu": True,
        "checkpoint_every": 1000,
        "deepspeed": deepspeed_config(candidate),
    }
    encoded = encode_rows(
        data, every=every, tokenizer=tokenizer, task=task, recipe=form["recipe"], split=SPLIT
    )
    pairs = ((found.example, heldout) for found, heldout in encoded if found.example is not None)
    if candidate.recipe.packing:
        pairs = pack_training_rows(pairs, max_length=candidate.recipe.max_length, seed=SPLIT["seed"])
    rows = [example for example, heldout in pairs if not heldout]
    session = open_session(
        str(model),
        task=task,
        candidate=form,
        adapter_config=config(steps),
        pad_id=tokenizer.pad_token_id,
        seed=values["seed"],
        total_steps=steps,
        on_cpu=True,
    )
    order = step_rows(len(rows), effective_batch=candidate.recipe.effective_batch, seed=values["order_seed"])
    losses = [step.loss for step in run_steps(session, rows, order, last=steps)]
    trial = {
        "steps": steps,
        "adapter_config": config(steps),
        "first_losses": losses,
        "trainable_sha256": session.census.trained_sha256,
    }
    return {**values, "trial": trial}


@pytest.fixture(scope="module")
def values(minilm_path: Path, reviews_csv: Path) -> dict[str, Any]:
    return make_values(minilm_path, reviews_csv)


def write_script(folder: Path, values: dict[str, Any]) -> Path:
    script = folder / "train.py"
    script.write_text(compose_program("train.py", values), encoding="utf-8")
    return script


def run_as_user(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Isolated from this repository: what it needs must be in the file or in public packages.
    command = [sys.executable, "-I", str(script), *arguments]
    return subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)


def test_repeats_the_measured_losses(tmp_path: Path, values: dict[str, Any]) -> None:
    script = write_script(tmp_path, values)
    assert "rankwise." not in script.read_text(encoding="utf-8")
    result = run_as_user(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("step ") == STEPS


@pytest.mark.parametrize(
    ("change", "noticed"),
    [({"r": 8}, "other shapes"), ({"lora_alpha": 16.0}, "losses NOT the same"), ({}, "losses NOT the same")],
    ids=["rank", "alpha", "rate"],
)
def test_notices_what_was_changed(
    tmp_path: Path, values: dict[str, Any], change: dict[str, Any], noticed: str, warm: WarmPython
) -> None:
    changed = json.loads(json.dumps(values))
    changed["trial"]["adapter_config"].update(change)
    if not change:
        changed["candidate"]["learning_rate"] = 8e-3
    result = warm.run(write_script(tmp_path, changed), "--verify")
    assert result.returncode == 1, result.stdout + result.stderr
    assert noticed in result.stdout


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def causal(adapter: Adapter, **recipe: Any) -> Candidate:
    return Candidate(
        adapter=adapter,
        level=Level(),
        recipe=Recipe(**{"max_length": 96, "effective_batch": 4, "epochs": 1, **recipe}),
        micro_batch=2,
        learning_rate=1e-2,
    )


def test_repeats_packed_conversations(
    tmp_path: Path, tiny_llama: Path, reviews_csv: Path, warm: WarmPython
) -> None:
    """With a chat template that is not the tokenizer's, of which it has none; of every second row."""
    texts = [row["text"] for row in read_rows(reviews_csv)]
    turns = (
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one, other in pairwise(texts)
    )
    data = write_jsonl(tmp_path / "chat.jsonl", ({"text": turn} for turn in turns))
    candidate = causal(
        LLAMA_LORA,
        packing=True,
        loss_mask=LossMask.ASSISTANT,
        chat_template_sha256=hashlib.sha256(CHATML.encode()).hexdigest(),
    )
    values = make_values(
        tiny_llama,
        data,
        task=make_task(TaskKind.CHAT),
        candidate=candidate,
        steps=6,
        every=2,
        template=CHATML,
    )
    script = write_script(tmp_path, values)
    result = warm.run(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr

    whole = warm.run(script, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("step ") > 12, "the whole training takes every row"
    assert (tmp_path / "whole" / "chat_template.jinja").read_text() == CHATML


def test_what_is_unfrozen_is_all_that_changes(
    tmp_path: Path, minilm_path: Path, reviews_csv: Path, warm: WarmPython
) -> None:
    adapter = Adapter(
        method=Method.LAST_BLOCKS,
        trained_modules=("classifier",),
        unfrozen=("bert.encoder.layer.5",),
        last_blocks=1,
    )
    candidate = replace(CANDIDATE, adapter=adapter, learning_rate=1e-3)
    values = make_values(minilm_path, reviews_csv, candidate=candidate, steps=3)
    assert values["adapter_config"] is None
    script = write_script(tmp_path, values)
    result = warm.run(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr

    whole = warm.run(script, "--max-steps", "2", "--out", "trained")
    assert whole.returncode == 0, whole.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained")
    before = load_file(minilm_path / "model.safetensors")
    changed = {
        name
        for name, value in model.state_dict().items()
        if (old := before.get(name.removeprefix("bert."))) is not None and not torch.equal(old, value)
    }
    assert len(changed) == 16
    assert all(name.startswith("bert.encoder.layer.5.") for name in changed)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("kind", [TaskKind.REGRESSION, TaskKind.SEQ2SEQ])
def test_repeats_other_tasks(
    tmp_path: Path, kind: TaskKind, minilm_path: Path, tiny_t5: Path, reviews_csv: Path, warm: WarmPython
) -> None:
    texts = [row["text"] for row in read_rows(reviews_csv)][:120]
    rows = ({"text": text, "length": len(text) / 100, "turned": text[::-1]} for text in texts)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    if kind is TaskKind.REGRESSION:
        values = make_values(minilm_path, data, task=make_task(kind, label_column="length"), steps=3)
    else:
        adapter = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q", "v"))
        values = make_values(
            tiny_t5,
            data,
            task=make_task(kind, target_column="turned"),
            candidate=causal(adapter),
            steps=3,
        )
    script = write_script(tmp_path, values)
    result = warm.run(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr
    whole = warm.run(script, "--max-steps", "2")
    assert whole.returncode == 0, whole.stderr
    metric = "mae" if kind is TaskKind.REGRESSION else "perplexity"
    assert re.search(rf"held-out loss [\d.]+ on \d+ rows, {metric} [\d.]+", whole.stdout)


@pytest.fixture(scope="module")
def tiny_t5(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random T5 with the tiny Llama's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = load_tokenizer(str(tiny_llama))
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_pruning_of_ranks_is_repeated_and_resumed(
    tmp_path: Path, tiny_llama: Path, texts_jsonl: Path, warm: WarmPython
) -> None:
    adapter = Adapter(
        method=Method.ADALORA, rank=2, initial_rank=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj")
    )
    texts = [row["text"] for row in read_rows(texts_jsonl)]
    rows = ({"text": text[:40], "answer": text[40:] or "."} for text in texts)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    task = make_task(TaskKind.PROMPT_COMPLETION, target_column="answer")
    candidate = causal(adapter, loss_mask=LossMask.COMPLETION, effective_batch=8)
    values = make_values(tiny_llama, data, task=task, candidate=candidate, steps=12)
    script = write_script(tmp_path, {**values, "checkpoint_every": 14})
    result = warm.run(script, "--verify")
    assert result.returncode == 0, result.stdout + result.stderr

    whole = warm.run(script, "--out", "whole", "--log", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr
    assert not (tmp_path / "whole" / "checkpoint").exists()
    losses = read_log(tmp_path / "whole.jsonl")
    assert len(losses) > 14

    command = [sys.executable, str(script), "--out", "parts", "--log", "parts.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step 15/"))
        process.kill()
    resumed = warm.run(script, "--out", "parts", "--log", "resumed.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    rest = read_log(tmp_path / "resumed.jsonl")
    assert min(rest) == 15
    assert rest == pytest.approx({step: loss for step, loss in losses.items() if step > 14}, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "no/such model"), "--model no/such model: "),
        (("--data", "ragged.csv"), "--data ragged.csv: .*line 3"),
        (("--data", "others.csv"), "--data others.csv: 0 rows .* labels negative, positive"),
    ],
    ids=["model", "ragged", "other labels"],
)
def test_what_is_wrong_is_one_message(
    tmp_path: Path, values: dict[str, Any], arguments: tuple[str, ...], message: str, warm: WarmPython
) -> None:
    (tmp_path / "ragged.csv").write_text("text,label\nfine,positive\nthree,cells,here\n")
    (tmp_path / "others.csv").write_text("text,label\n" + "fine,good\nbad,poor\n" * 20)
    result = warm.run(write_script(tmp_path, values), *arguments)
    assert result.returncode == 1
    assert re.fullmatch(message + ".*\n?", result.stderr), result.stderr


def read_log(path: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in map(json.loads, path.read_text().splitlines())}


def test_resumes_to_the_same_losses_after_sigterm(
    tmp_path: Path, values: dict[str, Any], warm: WarmPython
) -> None:
    script = write_script(tmp_path, values)
    whole = warm.run(script, "--out", "whole", "--log", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr

    command = [sys.executable, str(script), "--out", "parts", "--log", "parts.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.send_signal(signal.SIGTERM)
            break
    assert process.wait(timeout=60) == 143
    process.stdout.close()
    done = len(read_log(tmp_path / "parts.jsonl"))
    assert 5 <= done < len(read_log(tmp_path / "whole.jsonl")), "it should have stopped in mid-run"

    changed = {**values, "candidate": {**values["candidate"], "learning_rate": 2e-2}}
    write_script(tmp_path, changed)
    refused = warm.run(script, "--out", "parts", "--resume")
    assert refused.returncode == 1
    assert "another training" in refused.stderr

    write_script(tmp_path, values)
    resumed = warm.run(script, "--out", "parts", "--log", "parts.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert read_log(tmp_path / "parts.jsonl") == pytest.approx(read_log(tmp_path / "whole.jsonl"), abs=1e-6)
    for name in ("checkpoint", "checkpoint.previous", "README.md"):
        assert not (tmp_path / "parts" / name).exists()
    heldout = [re.findall(r"held-out loss .*", output)[0] for output in (whole.stdout, resumed.stdout)]
    assert heldout[0] == heldout[1]
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }
    assert all(value.allclose(second[name], atol=1e-6) for name, value in first.items())

    merged = merge_adapter(tmp_path / "whole", tmp_path / "merged")
    assert merged.difference is not None
    assert merged.difference < merged.tolerance
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
