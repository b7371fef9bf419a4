from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwise.optimizer.verdicts import Proof, Support, Verdict, Where
from rankwise.probes.factory import resolve_factory
from rankwise.probes.profiles import Factory, ModelProfile, ModuleProfile
from rankwise.runners.jobs import Inspection


@dataclass
class Answers:
    """An inspection without a job; factories are allowed as the real one allows them."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    def inspect(self, source: str, **options: Any) -> Inspection:
        self.asked.append({"source": source, **options})
        found = resolve_factory(
            source, arguments=options["arguments"], folder=None, allowed=options["allowed_factories"]
        )
        head = ModuleProfile(
            name="head", kind="linear", role="head", in_features=4, out_features=2, parameters=10
        )
        model = ModelProfile(
            source=source,
            path=found.folder,
            revision=None,
            architecture="Net",
            model_type="module",
            parameters=10,
            weight_bytes=40,
            structure_sha256="0" * 64,
            hidden_size=None,
            layers=None,
            max_positions=None,
            supports_gradient_checkpointing=False,
            modules=(head,),
            new_modules=(),
            factory=Factory(name=source, folder=found.folder, arguments=found.arguments),
        )
        lora = Verdict(
            name="lora",
            support=Support.YES,
            where=Where(modules=("head",)),
            trainable_params=48,
            proof=Proof.STEP,
        )
        return Inspection(task=None, model=model, stored_bytes={}, tried_with="layers", verdicts=(lora,))

    def stop(self) -> None:
        pass


@pytest.fixture
def answers(app: FastAPI, client: TestClient) -> Answers:
    app.state.inquiries = answers = Answers()
    return answers


def test_a_listed_factory_is_inspected(app: FastAPI, client: TestClient, answers: Answers) -> None:
    object.__setattr__(app.state.settings, "allowed_factories", ("torch.nn:*",))
    answer = client.get(
        "/v1/models/inspect",
        params={"model": "torch.nn:Linear", "arguments": '{"in_features": 4}', "targets": ["head", "re:h.*"]},
    )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["methods"]["lora"]["supported"] is True
    assert document["methods"]["lora"]["modules"] == ["head"]
    assert document["targets"]["re:h.*"]["trainable_params"]["8"] == 8 * (4 + 2)
    assert answers.asked[0]["arguments"] == {"in_features": 4}


def test_a_factory_that_is_not_listed_does_not_run(client: TestClient, answers: Answers) -> None:
    answer = client.get("/v1/models/inspect", params={"model": "torch.nn:Linear"})
    assert answer.status_code == 403
    assert "not among those that may run here" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": "[1]"}, "no JSON object"),
        ({"arguments": "{"}, "no JSON object"),
        ({"targets": "tail"}, "matches 'tail'"),
        ({"targets": "re:("}, "no regular expression"),
        ({"targets": "re:(a+)+b"}, "repeats a group"),
    ],
)
def test_what_cannot_be_read_is_said(
    app: FastAPI, client: TestClient, answers: Answers, changes: dict[str, str], message: str
) -> None:
    object.__setattr__(app.state.settings, "allowed_factories", ("torch.nn:*",))
    answer = client.get("/v1/models/inspect", params={"model": "torch.nn:Linear", **changes})
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
