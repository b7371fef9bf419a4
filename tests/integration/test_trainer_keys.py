"""The names of keys that are written down are those of the installed trainers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rankwise.optimizer.trainers.known_keys import KNOWN_KEYS
from rankwise.optimizer.trainers.reading import read, whose

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trainer_keys", REPOSITORY / "tests" / "trainer_keys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("trainer", ["transformers", "trl", "accelerate", "peft"])
def test_known_keys_are_those_of_the_installed_trainer(writer: ModuleType, trainer: str) -> None:
    assert KNOWN_KEYS[trainer] == writer.installed()[trainer], "run tests/trainer_keys.py"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_what_a_trainer_writes_of_itself_is_read(tmp_path: Path) -> None:
    from transformers import TrainingArguments
    from trl import SFTConfig

    for kind, trainer in ((TrainingArguments, "transformers"), (SFTConfig, "trl")):
        keys = kind(output_dir=str(tmp_path), report_to=[], learning_rate=1e-4, bf16=False).to_dict()
        assert whose(keys) == trainer
        reading = read(keys, trainer)
        assert (reading.unknown, reading.bad) == ((), ())
        assert (reading.get("learning_rate"), reading.get("autocast")) == (1e-4, None)
