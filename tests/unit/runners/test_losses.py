"""The chunked loss is the plain one, in value and gradient, and refuses models that it does not suit."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Gemma2Config, Gemma2ForCausalLM

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.profiles import TaskKind
from rankwise.runners import losses
from rankwise.runners.build import InvalidTrial
from rankwise.runners.losses import set_loss
from rankwise.runners.recipe import Example, collate, pack_training_rows
from rankwise.runners.trial.evaluation import evaluate
from rankwise.runners.trial.loop import Session, open_session, run_step

VOCABULARY = 1_000
TOKENS_AT_ONCE = 7
LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
FULL = Adapter(method=Method.FULL)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch here needs several pieces, the last of them shorter."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", TOKENS_AT_ONCE * 4 * VOCABULARY)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate remembers the mixed precision of the process's first session, and threads wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def open_llama(path: Path, adapter: Adapter, *, packing: bool = False, **level: Any) -> Session:
    candidate = Candidate(
        adapter=adapter,
        level=Level(**level),
        recipe=Recipe(
            max_length=48, effective_batch=4, schedule="constant", warmup_ratio=0.0, packing=packing
        ),
        micro_batch=2,
        learning_rate=1e-3,
    )
    return open_session(
        str(path),
        task={"kind": "causal-lm", "labels": []},
        candidate=to_json(candidate),
        adapter_config=adapter_config(
            candidate, task_kind=TaskKind.CAUSAL_LM, base_model="tiny", total_steps=100
        ),
        pad_id=0,
        seed=5,
        total_steps=10,
        on_cpu=True,
    )


def examples(*, packing: bool = False) -> list[Example]:
    """Rows of different lengths; of some only the end is learnt."""
    rows = [
        Example(
            array("i", [2 + (31 * row + 7 * at) % 900 for at in range(length)]),
            mask=array("b", [at >= length // 2 for at in range(length)]) if row % 2 else None,
        )
        for row, length in enumerate((5, 40, 11, 2, 23, 9))
    ]
    if not packing:
        return rows[:4]
    return [row for row, _ in pack_training_rows(((row, False) for row in rows), max_length=48, seed=0)]


def loss_and_gradients(session: Session, rows: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one optimizer step."""
    found: dict[str, torch.Tensor] = {}
    step = session.optimizer.step

    def look(*_: object) -> None:
        found.update((n, p.grad.clone()) for n, p in session.model.named_parameters() if p.grad is not None)
        step()

    session.optimizer.step = look  # type: ignore[method-assign]
    return run_step(session, rows, 0).loss, found


@pytest.mark.parametrize(
    ("adapter", "packing", "level", "tolerance"),
    [
        (FULL, False, {}, 1e-5),
        (FULL, True, {}, 1e-5),
        (LORA, True, {"gradient_checkpointing": True}, 1e-5),
        (LORA, False, {"compute_dtype": "bfloat16"}, 2e-2),
    ],
    ids=["padded", "packed", "checkpointing", "bfloat16"],
)
def test_chunked_is_plain(
    tiny_llama: Path, adapter: Adapter, packing: bool, level: dict[str, Any], tolerance: float
) -> None:
    rows = examples(packing=packing)
    assert sum(len(row.input_ids) for row in rows) > 4 * TOKENS_AT_ONCE
    plain, chunked = (
        loss_and_gradients(open_llama(tiny_llama, adapter, packing=packing, loss=name, **level), rows)
        for name in ("plain", "chunked")
    )
    assert chunked[0] == pytest.approx(plain[0], rel=tolerance / 10)
    assert chunked[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(chunked[1][name], gradient, rtol=0, atol=tolerance * scale + 1e-9)


def test_no_more_logits_exist_than_a_piece_has(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_llama(tiny_llama, LORA, loss="chunked")
    most = 0
    project = torch.nn.functional.linear

    def watched(hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal most
        out = project(hidden, weight, *rest)
        if out.shape[-1] == VOCABULARY:
            most = max(most, out.numel() // VOCABULARY)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    run_step(session, examples(), 0)
    assert most == TOKENS_AT_ONCE


def test_evaluation_is_as_without_it(tiny_llama: Path) -> None:
    found = [evaluate(open_llama(tiny_llama, LORA, loss=name), examples()) for name in ("plain", "chunked")]
    assert found[0].loss == pytest.approx(found[1].loss, abs=1e-6)


def test_the_models_own_loss_without_gradients_is_as_before(tiny_llama: Path) -> None:
    batch = collate(examples(), pad_id=0)
    models = [open_llama(tiny_llama, LORA, loss=name).model.eval() for name in ("plain", "chunked")]
    with torch.no_grad():
        plain, chunked = (model(**batch).loss.item() for model in models)
    assert chunked == pytest.approx(plain, abs=1e-6)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=30.0,
    )
    with pytest.raises(InvalidTrial, match="Gemma2ForCausalLM changes its logits between head and loss"):
        set_loss(Gemma2ForCausalLM(config).train(), "chunked", device=torch.device("cpu"))


def test_liger_on_a_cpu_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(InvalidTrial, match="needs a GPU"):
        open_llama(tiny_llama, LORA, loss="liger")
