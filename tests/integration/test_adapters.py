"""Saved adapters against PEFT itself: which method merges into which layer, and several on one model.

The tables of docs/adapters.md are these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

MERGES, DIFFERS, REFUSES, NO = "merges", "differs", "refuses", "no"
"""Merged, it answers the same; it answers something else; PEFT raises; the method cannot be put there."""

METHODS: dict[str, Callable[[list[str]], Any]] = {
    "lora": lambda targets: peft.LoraConfig(r=4, target_modules=targets),
    "rslora": lambda targets: peft.LoraConfig(r=4, use_rslora=True, target_modules=targets),
    "dora": lambda targets: peft.LoraConfig(r=4, use_dora=True, target_modules=targets),
    "adalora": lambda targets: peft.AdaLoraConfig(
        init_r=6, target_r=4, total_step=100, tinit=10, tfinal=50, target_modules=targets
    ),
    "ia3": lambda targets: peft.IA3Config(target_modules=targets, feedforward_modules=[]),
    "oft": lambda targets: peft.OFTConfig(oft_block_size=4, target_modules=targets),
    "miss": lambda targets: peft.MissConfig(r=4, target_modules=targets),
}

SERIES, IMAGES = (2, 8, 12), (2, 8, 6, 6)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(32, 16), (2, 5, 32)),
    "Conv1D": (lambda: Conv1D(16, 32), (2, 5, 32)),
    "Conv2d": (lambda: nn.Conv2d(8, 16, 3, padding=1), IMAGES),
    "Conv2d 1×1": (lambda: nn.Conv2d(8, 16, 1), IMAGES),
    "Conv2d groups": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=4), IMAGES),
    "Conv1d": (lambda: nn.Conv1d(8, 16, 3, padding=1), SERIES),
    "Conv1d dilated": (lambda: nn.Conv1d(8, 16, 3, padding="same", dilation=2), SERIES),
    "Embedding": (lambda: nn.Embedding(20, 16), (2, 5)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(16, 2, batch_first=True), (2, 5, 16)),
}

# fmt: off
TABLE = {
    #                      lora     rslora   dora     adalora  ia3      oft      miss
    "Linear":             (MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  MERGES),
    "Conv1D":             (MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  NO,      NO),
    "Conv2d":             (MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  DIFFERS, NO),
    "Conv2d 1×1":         (MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  MERGES,  NO),
    "Conv2d groups":      (REFUSES, REFUSES, REFUSES, NO,      MERGES,  REFUSES, NO),
    "Conv1d":             (MERGES,  MERGES,  MERGES,  NO,      NO,      NO,      NO),
    "Conv1d dilated":     (DIFFERS, DIFFERS, DIFFERS, NO,      NO,      NO,      NO),
    "Embedding":          (MERGES,  MERGES,  MERGES,  NO,      NO,      MERGES,  NO),
    "MultiheadAttention": (MERGES,  MERGES,  NO,      NO,      NO,      NO,      NO),
}
QUANTIZED = {
    "nf4":                (DIFFERS, DIFFERS, DIFFERS, REFUSES, REFUSES, DIFFERS, DIFFERS),
    "int8":               (DIFFERS, DIFFERS, DIFFERS, REFUSES, REFUSES, DIFFERS, DIFFERS),
}
# fmt: on
CELLS = [(layer, method, row[at]) for layer, row in TABLE.items() for at, method in enumerate(METHODS)]
QUANTIZED_CELLS = [
    (kind, method, row[at]) for kind, row in QUANTIZED.items() for at, method in enumerate(METHODS)
]


class Around(nn.Module):
    """The layer as ``part`` of a module, called as such a layer is."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self._is_attention = isinstance(part, nn.MultiheadAttention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x, x, x)[0] if self._is_attention else self.part(x)


def disturb(model: nn.Module, size: float = 0.2) -> None:
    """As a training leaves it: all that is trained is somewhere else."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)


def save(model: Any, folder: Path) -> None:
    model.create_or_update_model_card = lambda *_: None
    model.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def answer(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: Any = model.eval()(inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to")
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
@pytest.mark.parametrize(("layer", "method", "verdict"), CELLS)
def test_merging_into_a_layer(layer: str, method: str, verdict: str, tmp_path: Path) -> None:
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    base = Around(make())
    inputs = torch.randint(0, 20, shape) if layer == "Embedding" else torch.randn(shape)
    try:
        adapted = get_peft_model(copy.deepcopy(base), METHODS[method](["part"]))
        disturb(adapted)
        before = answer(adapted, inputs)
    except (ValueError, TypeError, RuntimeError):
        assert verdict == NO
        return
    save(adapted, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(answer(loaded, inputs), before)
    assert not torch.allclose(before, answer(base, inputs), atol=1e-2)
    try:
        merged = loaded.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError):
        assert verdict == REFUSES
        return
    assert type(merged.part) is type(base.part)
    is_equal = torch.allclose(answer(merged, inputs), before, atol=1e-4)
    assert verdict == (MERGES if is_equal else DIFFERS)


@pytest.mark.filterwarnings("ignore:Merge .* module to [48]-bit linear may get different generations")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize(("kind", "method", "verdict"), QUANTIZED_CELLS)
def test_merging_into_a_quantized_base(kind: str, method: str, verdict: str, tiny_llama: Path) -> None:
    """The sum is quantized again, which takes away a good part of what was learnt."""
    settings = (
        {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
    )
    base = AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32, device_map="cpu"
    )
    inputs = torch.randint(0, 900, (2, 12))
    torch.manual_seed(0)
    adapted = get_peft_model(base, METHODS[method](["q_proj", "v_proj"]))
    disturb(adapted, 0.1)
    before = None if (kind, method) == ("int8", "dora") else answer(adapted, inputs)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError):
        assert verdict == REFUSES
        return
    after = answer(merged, inputs)
    assert before is None or not torch.allclose(after, before, atol=1e-4)
    assert verdict == DIFFERS


def test_the_table_that_people_read_is_this_one() -> None:
    rows = {
        "Linear": "`Linear`",
        "Conv1D": "`Conv1D` (GPT-2)",
        "Conv2d": "`Conv2d`",
        "Conv2d 1×1": "`Conv2d`, 1×1",
        "Conv2d groups": "`Conv2d` with groups",
        "Conv1d": "`Conv1d`",
        "Conv1d dilated": "`Conv1d`, dilated",
        "Embedding": "`Embedding`",
        "MultiheadAttention": "`nn.MultiheadAttention`",
        "nf4": "nf4 base",
        "int8": "int8 base",
    }
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    for layer, verdicts in (TABLE | QUANTIZED).items():
        cells = (f"**{verdict}**" if verdict == DIFFERS else verdict for verdict in verdicts)
        assert f"\n| {' | '.join((rows[layer], *cells))} |\n" in text


def test_several_adapters_on_one_model(tmp_path: Path) -> None:
    """As docs/adapters.md shows it: trained one after the other, switched by name, saved, loaded, merged."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    inputs = torch.randn(3, 32)
    without = answer(base, inputs)

    model = get_peft_model(copy.deepcopy(base), METHODS["lora"](["0"]), adapter_name="spam")
    disturb(model)
    model.add_adapter("tone", METHODS["lora"](["0", "2"]))
    model.set_adapter("tone")
    disturb(model)
    answers = {}
    for name in ("spam", "tone"):
        model.set_adapter(name)
        answers[name] = answer(model, inputs)
    with model.disable_adapter():
        assert torch.equal(answer(model, inputs), without)
    assert not torch.allclose(answers["spam"], answers["tone"], atol=1e-2)
    model.create_or_update_model_card = lambda *_: None
    model.save_pretrained(tmp_path)  # one folder an adapter
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["spam", "tone"]

    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "tone", adapter_name="tone")
    loaded.load_adapter(tmp_path / "spam", adapter_name="spam")
    for name in ("spam", "tone"):
        loaded.set_adapter(name)
        assert torch.equal(answer(loaded, inputs), answers[name])
    merged = loaded.merge_and_unload(adapter_names=["tone"])
    assert torch.allclose(answer(merged, inputs), answers["tone"], atol=1e-5)
