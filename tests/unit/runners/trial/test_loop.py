"""Single steps of a real, tiny language model in this process."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rankwise.optimizer.codec import to_json
from rankwise.optimizer.domain import Adapter, Candidate, Level, Method, Recipe
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.probes.profiles import TaskKind
from rankwise.runners.recipe import Example, collate
from rankwise.runners.trial.evaluation import evaluate
from rankwise.runners.trial.loop import Session, open_session, run_step, run_steps
from rankwise.runners.trial.measure import peak_tensor_bytes

LORA = Adapter(method=Method.LORA, rank=4, alpha=8, targets=("q_proj", "v_proj"))
FULL = Adapter(method=Method.FULL)
TASK = {"kind": "causal-lm", "labels": []}
PAD_ID = 0

Open = Callable[..., Session]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several would wait for each other wherever other work runs beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def open_llama(tiny_llama: Path) -> Open:
    def open_(adapter: Adapter = LORA, *, learning_rate: float = 1e-3, micro_batch: int = 4) -> Session:
        candidate = Candidate(
            adapter=adapter,
            level=Level(),
            recipe=Recipe(max_length=64, effective_batch=4, schedule="constant", warmup_ratio=0.0),
            micro_batch=micro_batch,
            learning_rate=learning_rate,
        )
        return open_session(
            str(tiny_llama),
            task=TASK,
            candidate=to_json(candidate),
            adapter_config=adapter_config(
                candidate, task_kind=TaskKind.CAUSAL_LM, base_model="tiny", total_steps=100
            ),
            pad_id=PAD_ID,
            seed=5,
            total_steps=10,
            on_cpu=True,
        )

    return open_


def make_examples(*lengths: int) -> list[Example]:
    return [
        Example(array("i", [2 + (31 * row + at) % 900 for at in range(n)])) for row, n in enumerate(lengths)
    ]


def gradients_before_the_step(session: Session, examples: list[Example]) -> list[torch.Tensor]:
    """What reaches the optimizer in one step."""
    seen: list[torch.Tensor] = []
    step = session.optimizer.step

    def look(*_: object) -> None:
        seen.extend(p.grad.clone() for p in session.model.parameters() if p.grad is not None)
        step()

    session.optimizer.step = look
    run_step(session, examples, 0)
    return seen


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up_to_the_gradient_of_the_whole(open_llama: Open, micro_batch: int) -> None:
    examples = make_examples(5, 40, 11, 2)
    whole = gradients_before_the_step(open_llama(), examples)
    parts = gradients_before_the_step(open_llama(micro_batch=micro_batch), examples)
    assert any(gradient.abs().max() > 1e-6 for gradient in whole)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_loss_is_the_models_own(open_llama: Open) -> None:
    session, examples = open_llama(), make_examples(5, 40, 11, 2)
    expected = session.model(**collate(examples, pad_id=PAD_ID)).loss.item()
    step = run_step(session, examples, 7)
    assert step.loss == pytest.approx(expected, abs=1e-5)
    assert (step.number, step.tokens, step.rows, step.learning_rate) == (7, 58, 4, 1e-3)
    assert step.seconds > 0


def test_a_row_without_anything_to_predict_spoils_nothing(open_llama: Open) -> None:
    """A single token has no next one; alone in its micro-batch it leaves a mean over nothing."""
    examples = make_examples(1, 9, 9)
    step = run_step(open_llama(micro_batch=1), examples, 0)
    assert step.loss == pytest.approx(run_step(open_llama(), examples, 0).loss, abs=1e-5)


def test_a_resumed_run_meets_the_rows_that_were_left(open_llama: Open) -> None:
    rows = make_examples(3, 4, 5, 6, 7, 8)
    order = [[0, 1], [2, 3], [4, 5]]
    whole = list(run_steps(open_llama(learning_rate=0.0), rows, iter(order)))
    rest = list(run_steps(open_llama(learning_rate=0.0), rows, iter(order), first=1, last=2))
    assert [step.number for step in rest] == [1]
    assert (rest[0].tokens, rest[0].loss) == (11, pytest.approx(whole[1].loss, abs=1e-6))


def test_evaluation_is_the_mean_over_all_predicted_tokens(open_llama: Open) -> None:
    session, rows = open_llama(), make_examples(5, 40, 11, 2, 2)
    expected = session.model(**collate(rows, pad_id=PAD_ID)).loss.item()
    found = evaluate(session, rows)
    assert found.loss == pytest.approx(expected, abs=1e-5)
    assert found.rows == 5
    assert found.loss_se is not None
    assert found.loss_se > 0
    assert session.model.training


def test_memory_peaks_in_the_second_micro_batch(open_llama: Open) -> None:
    """It meets the gradients of the first; from then on nothing is added but the batches themselves."""
    session, rows = open_llama(FULL, micro_batch=2), [make_examples(64)[0]] * 8
    run_step(session, rows, 0)  # the optimizer's state is born
    one, two, four = (peak_tensor_bytes(session, rows[:count]) for count in (2, 4, 8))
    assert two > one
    assert four - two < 0.01 * two


def test_one_process_asks_nobody_for_the_model_without_wrappers(
    open_llama: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate would import DeepSpeed for it, which takes half a second in each trial."""
    session = open_llama()
    monkeypatch.setattr(session.accelerator, "unwrap_model", None)
    assert session.bare_model is session.model
    assert session.has_adapter
