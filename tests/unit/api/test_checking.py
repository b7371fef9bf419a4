"""``rankwise check`` and ``POST /v1/check``: what is told of a trainer's file, and what CI makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankwise.api import checking
from rankwise.api.checking import Where, check, estimator
from rankwise.api.cli.main import app
from rankwise.api.trainer_files import is_trainer_file, load_trainer_file, read_trainer_text
from rankwise.api.trainer_options import better_split
from rankwise.errors import InputError, PathNotAllowed
from rankwise.home import Home

TRL = """\
model_name_or_path: {model}
use_peft: true
lora_r: 16
lora_target_modules: [q_proj, v_proj]
dtype: bfloat16
learning_rate: 3e-4
per_device_train_batch_size: 1
gradient_accumulation_steps: 16
output_dir: out
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"model_type": "llama", "hidden_size": 4096}))
    return str(path)


@pytest.fixture
def sft(tmp_path: Path, model: str) -> Path:
    path = tmp_path / "sft.yaml"
    path.write_text(TRL.format(model=model))
    return path


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, home: Home, dry_run) -> Any:
    """The scripted dry run, in place of a warm server."""

    class Scripted:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Any:
            return dry_run

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(checking, "Inquiries", Scripted)
    return dry_run


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "last"),
    [
        (["--gpu", "A100-80GB"], 0, "Fits on A100 SXM 80GB"),
        (["--memory", "6GiB"], 3, "Does not fit"),
        (["--memory", "12.5GiB"], 4, "Too close to call"),
        (["--quick"], 0, "only the file was looked at"),
        (["--gpu", "B9000"], 2, ""),
        (["--gpu", "A100-80GB", "--format", "trl"], 0, "Fits on A100 SXM 80GB"),
        (["--format", "excel"], 2, ""),
    ],
)
def test_the_exit_code_says_what_was_found(
    sft: Path, job, arguments: list[str], code: int, last: str
) -> None:
    done = run(sft, *arguments)
    if done.exit_code != code:
        assert isinstance(done.exception, InputError), done.output  # main() turns it into the exit code 2
        assert code == 2
        return
    assert last in done.stdout.splitlines()[-1]


def test_errors_in_the_file_come_before_what_does_not_fit(sft: Path, job) -> None:
    sft.write_text(sft.read_text() + "learning_ratee: 1\n")
    done = run(sft, "--memory", "6GiB")
    assert done.exit_code == 2
    assert "line 10: 'learning_ratee' is no key of TRL's SFT" in done.stdout
    assert "did you mean learning_rate?" in done.stdout


def test_strict_turns_warnings_into_errors(sft: Path) -> None:
    sft.write_text(sft.read_text().replace("3e-4", "2e-5"))
    assert run(sft, "--quick").exit_code == 0
    assert run(sft, "--quick", "--strict").exit_code == 2


def test_annotations_point_at_the_line_and_cannot_be_broken_out_of(tmp_path: Path) -> None:
    path = tmp_path / "a,b.yaml"
    path.write_text('base_model: m\nadapter: lora\n"x\\n::error::y%": 1\nmicro_batch_size: 1\n')
    done = run(path, "--quick", "--github")
    (line,) = [line for line in done.stdout.splitlines() if "unknown-key" in line]
    assert line.startswith("::warning file=")
    assert "a%2Cb.yaml,line=3," in line
    assert "\n::error" not in done.stdout
    assert "y%25" in line


def test_several_files_are_looked_at_even_where_one_cannot_be_read(sft: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [\n")
    done = run(broken, sft, "--quick")
    assert done.exit_code == 2
    assert "line 2" in done.stdout
    assert "sft.yaml: a file of trl" in done.stdout.replace("\n", "")


def test_json_has_findings_settings_and_the_estimate(sft: Path, job) -> None:
    document = json.loads(run(sft, "--gpu", "A100-80GB", "--json").stdout)
    assert (document["format"], document["fits"], document["counts"]["error"]) == ("trl", "yes", 0)
    assert document["settings"]["rank"] == 16
    assert "gradient_checkpointing" in document["defaults"]
    assert document["estimate"]["max_micro_batch"] >= 1


def test_a_model_that_is_not_at_hand_leaves_memory_unknown(sft: Path, job, model: str) -> None:
    sft.write_text(sft.read_text().replace(model, str(Path(model).parent / "gone")))
    done = run(sft, "--gpu", "A100-80GB")
    assert (done.exit_code, "Nothing is known of its memory" in done.stdout) == (4, True)


def test_deepspeeds_file_is_read_beside_it_and_held_against_it(sft: Path) -> None:
    sft.write_text(sft.read_text() + "deepspeed: ds.json\n")
    stage = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 4}
    (sft.parent / "ds.json").write_text(json.dumps(stage))
    file = load_trainer_file(sft)
    assert file.reading.get("zero_stage") == 2
    done = run(sft, "--quick")
    assert done.exit_code == 2
    assert "micro-batches of 4 rows, and this one 1" in done.stdout


def test_an_adapter_beside_a_trainers_arguments_belongs_to_them(tmp_path: Path) -> None:
    (tmp_path / "training_args.json").write_text('{"learning_rate": 1e-4, "bf16": true}')
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q"]}')
    reading = load_trainer_file(tmp_path).reading
    assert (reading.trainer, reading.get("rank"), reading.get("learning_rate")) == ("transformers", 4, 1e-4)


def test_only_allowed_files_are_read(sft: Path, tmp_path: Path) -> None:
    other = tmp_path / "roots"
    other.mkdir()
    with pytest.raises(PathNotAllowed):
        load_trainer_file(sft, roots=[other])
    inside = other / "sft.yaml"
    inside.write_text(TRL.format(model="m/m") + "deepspeed: ../../secret.json\n")
    assert "outside the allowed folders" in load_trainer_file(inside, roots=[other]).problems[0]


def test_a_text_without_a_place_reads_nothing_beside_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    file = read_trainer_text(TRL.format(model="org/m") + "deepspeed: ds.json\n", "text")
    assert file.reading.get("zero_stage") is None
    assert "was not looked at" in file.problems[0]


def test_targets_that_the_model_has_not_are_passed_over_as_peft_does(sft: Path, dry_run) -> None:
    class Picky:
        def estimate(self, source: str, settings: Any, terms: Any, **options: Any) -> Any:
            if "o_prj" in settings.targets:
                raise InputError("Llama has no module 'o_prj'", next_step="use o_proj")
            return dry_run(terms, options["enough"])

    sft.write_text(sft.read_text().replace("v_proj]", "o_prj]"))
    where = Where(gpu="A100-80GB")
    document = check(load_trainer_file(sft), where, estimator(Picky(), where), disk=sft.parent)  # type: ignore[arg-type]
    (finding,) = [each for each in document.findings if each.id == "target-matches-nothing"]
    assert (finding.line, "o_prj" in finding.message, document.fits) == (4, True, "yes")


def test_what_is_faster_or_fits_is_said(sft: Path, dry_run) -> None:
    class Scripted:
        """Without checkpointing, or of more rows, a step takes half the work."""

        def estimate(self, source: str, settings: Any, terms: Any, **options: Any) -> Any:
            found = dry_run(terms, options["enough"])
            checkpointed = settings.gradient_checkpointing
            changed = []
            for each in found.predictions:
                level = replace(each.candidate.level, gradient_checkpointing=checkpointed)
                work = replace(each.work, moved_bytes=each.work.moved_bytes * (2 if checkpointed else 1))
                candidate = replace(each.candidate, level=level, micro_batch=settings.micro_batch)
                changed.append(replace(each, candidate=candidate, work=work))
            return replace(found, predictions=tuple(changed))

    where = Where(gpu="A100-80GB")
    document = check(load_trainer_file(sft), where, estimator(Scripted(), where), disk=sft.parent)  # type: ignore[arg-type]
    found = {each.id: each for each in document.findings}
    assert "faster" in found["checkpointing-not-needed"].message
    assert all(each.severity == "hint" for each in found.values())


@pytest.mark.parametrize(
    ("split", "most", "better"),
    [
        ((1, 16), 6, (4, 4)),
        ((8, 2), 3, (2, 8)),
        ((4, 4), 4, None),
        ((2, 8), 100, (16, 1)),
        ((3, 1), 2, (1, 3)),
    ],
)
def test_micro_batches_keep_the_rows_of_a_step(split, most: int, better) -> None:
    assert better_split(*split, most) == better


def test_an_estimate_takes_a_trainers_file_and_options_count_more(
    sft: Path, monkeypatch, home, dry_run
) -> None:
    from rankwise.api import estimates

    asked: list[Any] = []

    def estimate_once(home: Home, source: str, settings: Any, terms: Any, **options: Any) -> Any:
        asked.append(settings)
        return dry_run(terms, options["enough"])

    monkeypatch.setattr(estimates, "estimate_once", estimate_once)
    done = CliRunner().invoke(app, ["estimate", str(sft), "--seq-len", "512", "--gpu", "A100-80GB"])
    assert done.exit_code == 0, done.output
    assert (asked[0].rank, asked[0].accumulation, asked[0].length) == (16, 16, 512)
    assert asked[0].targets == "q_proj,v_proj"


def test_a_models_configuration_is_no_trainers_file(model: str, sft: Path) -> None:
    assert (is_trainer_file(model), is_trainer_file(str(sft)), is_trainer_file("org/m")) == (
        False,
        True,
        False,
    )
