"""An adapter as PEFT's configuration; that PEFT loads it is an integration test."""

from __future__ import annotations

from rankwise.optimizer.domain import Method
from rankwise.optimizer.exports.peft import adapter_config
from rankwise.optimizer.levels import enumerate_candidates
from rankwise.probes.profiles import TaskKind


def test_full_fine_tuning_has_no_adapter_configuration(build):
    full = enumerate_candidates(build.facts(), build.request(methods=(Method.FULL,)))[0]
    assert (
        adapter_config(full, task_kind=TaskKind.TEXT_CLASSIFICATION, base_model="some/model", total_steps=100)
        is None
    )


def test_modules_to_save_is_null_where_nothing_is_new(build):
    lora = enumerate_candidates(build.facts(model=build.gpt2()), build.request(methods=(Method.LORA,)))[0]
    config = adapter_config(lora, task_kind=TaskKind.CAUSAL_LM, base_model="some/model", total_steps=100)
    assert config["modules_to_save"] is None
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
