"""The real job on a configuration of a few hundred thousand parameters, as users reach it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from rankwise import estimate
from rankwise.api.app import create_app
from rankwise.api.cli.main import app as program
from rankwise.api.estimates import answer, read_question
from rankwise.api.response_schemas.estimates import EstimateDocument
from rankwise.api.settings import ServerSettings
from rankwise.errors import InputError, ModelError
from rankwise.home import Home
from rankwise.optimizer.estimates.prediction import Terms
from rankwise.optimizer.estimates.settings import Settings
from rankwise.probes.profiles import TaskKind
from rankwise.runners.jobs import Inquiries

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1_000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
PARAMETERS = 2 * 1_000 * 64 + 6 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64) + 64
OPTIONS = {"batch_size": 2, "seq_len": 128, "targets": "q_proj,v_proj", "rank": 8, "memory_limit": "2GiB"}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    return str(path)


@pytest.fixture(scope="module")
def inquiries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inquiries]:
    """One warm server for many questions, as the service has it."""
    with Inquiries(Home(tmp_path_factory.mktemp("home")).create()) as found:
        yield found


def told(inquiries: Inquiries, config: Path, **options: Any) -> EstimateDocument:
    """As `rankwise.estimate`, which starts a warm server for each question."""
    question = read_question(config, **options)
    ask = partial(inquiries.estimate, question.model, question.settings, task=question.task)
    return answer(question, lambda terms, enough: ask(terms, enough=enough))


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != "seconds_spent"}


def test_command_line_http_and_python_give_one_answer(config: str, home: Home) -> None:
    arguments = [
        text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    done = CliRunner().invoke(program, ["estimate", config, *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["model"]["parameters"] == PARAMETERS
    assert found["trainable_params"] == 6 * 8 * (64 + 64 + 64 + 32)
    assert found["breakdown"]["base_weights"] >= 2 * PARAMETERS
    assert found["fits"] == "yes"
    assert found["max_micro_batch"] > 2
    assert found["max_seq_len"] == 512, "the model has no more positions"
    assert found["phases"].keys() >= {"build", "forward", "backward", "optimizer"}
    assert max(found["phases"].values()) == found["peak_allocated_bytes"]

    by_python = estimate(config, home=home.root, **OPTIONS)  # type: ignore[arg-type]
    assert without_time(by_python.model_dump(mode="json")) == without_time(found)

    settings = ServerSettings(home=home, allowed_roots=(Path(config).parent,))
    with TestClient(create_app(settings, supervise=False), base_url="http://127.0.0.1:8321") as client:
        answer = client.post("/v1/estimates", json={"model": config, **OPTIONS})
        assert answer.status_code == 200, answer.text
        assert without_time(answer.json()) == without_time(found)
        refused = client.post("/v1/estimates", json={"model": config, "targets": "nowhere"})
        assert refused.status_code == 422
        assert "no module 'nowhere'" in refused.json()["detail"]
    assert list(home.tokens.parent.iterdir()) == [home.tokens], "nothing of the jobs is left behind"


def test_the_libraries_are_imported_before_anybody_asks(config: str, home: Home) -> None:
    settings = ServerSettings(home=home, allowed_roots=(Path(config).parent,))
    with TestClient(create_app(settings, supervise=False), base_url="http://127.0.0.1:8321") as client:
        looks = 0
        while not client.post("/v1/estimates/readiness").json()["ready"]:
            looks += 1
            time.sleep(0.1)
        assert looks > 0
        assert client.post("/v1/estimates", json={"model": config, **OPTIONS}).status_code == 200


def test_a_server_that_shuts_down_waits_for_no_imports(home: Home) -> None:
    with Inquiries(home) as inquiries:
        assert not inquiries.get_ready()
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 3


def test_images_have_no_length(tmp_path: Path, inquiries: Inquiries) -> None:
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    config.write_text(json.dumps({"model_type": "vit", "image_size": 32, "patch_size": 8, **sizes}))
    found = told(inquiries, config, gpu="T4", precision="fp16", batch_size=4, tokens=1_000)
    assert found.task is TaskKind.IMAGE_CLASSIFICATION
    assert found.trainable_params == 6 * 4 * 16 * (32 + 32) + 2 * 32 + 2
    assert (found.max_micro_batch or 0) > 4
    assert (found.max_seq_len, found.tokens_per_second, found.hours) == (None, None, None)
    assert any("32 × 32 pixels in 3 channels" in note for note in found.notes)
    longer = told(inquiries, config, gpu="T4", precision="fp16", batch_size=4, seq_len=4_096)
    assert longer.peak_allocated_bytes == found.peak_allocated_bytes
    with pytest.raises(InputError, match="neither padded nor packed"):
        told(inquiries, config, packed=True)
    # For checkpoints PEFT has embeddings require gradients: Swin's give a tuple (transformers 5.23).
    swin = {"model_type": "swin", "image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    config.write_text(json.dumps({**swin, "patch_size": 4, "window_size": 4}))
    with pytest.raises(InputError, match="requires_grad_"):
        told(inquiries, config)
    assert told(inquiries, config, gradient_checkpointing=False).model.model_type == "swin"


def test_a_server_that_died_is_started_again(config: str, home: Home) -> None:
    Path(config).write_text(json.dumps({**LLAMA, "hidden_size": "big"}))
    with Inquiries(home) as inquiries:
        for attempt in range(2):
            with pytest.raises(ModelError, match="expected int, got str"):
                inquiries.estimate(config, Settings(), [Terms()])
            server = inquiries._server
            assert server is not None
            if attempt == 0:
                os.kill(server.pid, signal.SIGKILL)
                while server.is_alive():
                    time.sleep(0.01)
        started_s = time.monotonic()
        with pytest.raises(ModelError, match="expected int, got str"):
            inquiries.estimate(config, Settings(), [Terms()])
        assert time.monotonic() - started_s < 5
        Path(config).write_text(json.dumps(LLAMA))
        with pytest.raises(InputError, match="batch size 0"):
            inquiries.estimate(config, Settings(micro_batch=0), [Terms()])
    assert not server.is_alive()


@pytest.mark.parametrize(
    "wrong", [{"num_hidden_layers": 10**9}, {"num_attention_heads": 0}, {"model_type": "nosuch"}]
)
def test_what_no_model_has_is_refused_before_a_server_starts(
    config: str, home: Home, wrong: dict[str, Any]
) -> None:
    Path(config).write_text(json.dumps({**LLAMA, **wrong}))
    with Inquiries(home) as inquiries:
        with pytest.raises(ModelError):
            inquiries.estimate(config, Settings(), [Terms()])
        assert inquiries._server is None


def test_many_limits_are_answered_by_one_job(config: str, inquiries: Inquiries) -> None:
    limits = [2**20, 64 * 2**20, 2**30, 2**31, 2**32]
    terms = [Terms(limit_bytes=limit) for limit in limits]
    settings = Settings(micro_batch=2, length=128, rank=8)
    some = inquiries.estimate(config, settings, terms, enough=2).predictions
    every = inquiries.estimate(config, settings, terms).predictions
    fitting = [limit for limit in limits if every[0].need.reserved_bytes <= limit]
    assert len(every) == len(limits)
    assert len(some) == limits.index(fitting[1]) + 1, "it ends once two fit"
    assert [each.max_micro_batch for each in some[-2:]] == [
        each.max_micro_batch for each in every[len(some) - 2 : len(some)]
    ]
    batches = [each.max_micro_batch or 0 for each in every]
    assert batches == sorted(batches)
    assert batches[-1] > batches[-3] > 0
