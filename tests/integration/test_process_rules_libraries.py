"""What several processes cannot train is as the rules say; what no rule forbids they train as one does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import map_pytorch_optim_to_deepspeed

from rankwise.optimizer.process_rules import BLOCKS_WITH_EMBEDDINGS

PROGRAM = Path(__file__).with_name("process_cases.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found in each case; DeepSpeed may have to be compiled first."""
    folder = tmp_path_factory.mktemp("cases")
    ran = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, "TINY": str(folder / "tiny")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    cases: dict[str, Any] = json.loads(ran.stdout)
    return cases


def cases_of(table: str) -> list[str]:
    """Of the program, without importing it: that would choose DeepSpeed's device for all tests."""
    assigned = (node for node in ast.parse(PROGRAM.read_text()).body if isinstance(node, ast.Assign))
    value = next(node.value for node in assigned if ast.unparse(node.targets[0]) == table)
    return [f"{scheme} {case}" for scheme, cases in ast.literal_eval(value).items() for case in cases]


@pytest.mark.parametrize("case", cases_of("WORKING"))
def test_what_no_rule_forbids_is_trained_as_by_one_process(found: dict[str, Any], case: str) -> None:
    assert "error" not in found[case], found[case]
    # FSDP2 gives the loss in the dtype that it computes in: bfloat16 has three digits.
    tolerance = 0.02 if case.startswith("fsdp2 bf16") else 1e-3
    assert found[case]["losses"] == pytest.approx(found[case]["single"], abs=tolerance)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("zero1 adalora", "Gradients are only available immediately after backward"),
        ("zero3 adalora", "must match the size"),
        ("fsdp1 adalora", "NoneType|must match the size|Timed out"),
        ("fsdp2 adalora", "DTensor"),
        ("fsdp1 experts", "modified inplace"),
        ("fsdp1 nf4", "Cannot flatten integer dtype"),
        ("fsdp1 int8", "Cannot flatten integer dtype"),
        ("fsdp1 frozen in half", "uniform dtype"),
        ("fsdp2 int8", "CB"),
        ("fsdp2 8-bit optimizer", "DTensor|sharding strategy"),
        ("fsdp2 bert", "Invariant encountered"),
        ("fsdp2 t5", "shared with a parameter already managed"),
    ],
)
def test_what_a_rule_forbids_fails(found: dict[str, Any], case: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(found[case].get("error", "it was trained"))


def test_every_failing_case_is_looked_at() -> None:
    marks = test_what_a_rule_forbids_fails.pytestmark[0].args[1]
    assert [case for case, _ in marks] == sorted(cases_of("FAILING"), key=[c for c, _ in marks].index)


def test_zero_casts(found: dict[str, Any]) -> None:
    """Trained weights in float32 become those of bfloat16."""
    assert found["zero2 bf16 frozen in half"]["dtypes"] == ["torch.bfloat16"]
    assert found["fsdp2 bf16 frozen in half"]["dtypes"] == ["torch.float32"]


def test_weights_are_divided_but_8_bit_ones_are_kept_whole(found: dict[str, Any]) -> None:
    whole = found["ddp lora"]["whole"]
    assert found["zero3 lora"]["weight"] == found["fsdp2 lora"]["weight"] == whole // 2
    assert found["zero3 nf4"]["weight"] == found["ddp nf4"]["weight"] // 2
    assert (found["zero3 int8"]["weight"], found["zero3 int8"]["kept"]) == (whole // 2, whole)


def test_fsdp_2_leaves_4_bit_weights_whole(found: dict[str, Any]) -> None:
    assert found["fsdp2 nf4"]["weight"] == found["ddp nf4"]["weight"]


def test_fsdp_own_modules(found: dict[str, Any]) -> None:
    """All of it is one unit; of a transformer each block is one."""
    assert found["fsdp2 own"]["units"] == 1
    assert found["fsdp2 lora"]["units"] > 2


def test_fsdp_without_gpu(found: dict[str, Any]) -> None:
    for version in (1, 2):
        assert found[f"fsdp{version} on a CPU lora"]["kind"] == "DistributedDataParallel"


def test_offloaded_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given, DeepSpeed's own comes, and an 8-bit AdamW's decay becomes Adam's."""
    import bitsandbytes
    import deepspeed.ops.adam

    made: list[dict[str, Any]] = []

    def note(_: Any, **options: Any) -> None:
        made.append(options)

    monkeypatch.setattr(deepspeed.ops.adam, "DeepSpeedCPUAdam", note)
    trained = [torch.nn.Parameter(torch.zeros(4))]
    for kind in (torch.optim.AdamW, bitsandbytes.optim.AdamW8bit):
        map_pytorch_optim_to_deepspeed(kind(trained, lr=1e-3))
    assert [options["adamw_mode"] for options in made] == [True, False]


def test_fsdp_2_embeddings() -> None:
    """Each of these types has its embeddings among its blocks."""
    import transformers

    for name in BLOCKS_WITH_EMBEDDINGS:
        kind = transformers.AutoConfig.for_model(name)
        model = transformers.MODEL_MAPPING[type(kind)]
        assert any("Embeddings" in block for block in model._no_split_modules), name
