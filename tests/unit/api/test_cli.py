from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.api.cli.console import exit_code, results
from rankwise.api.cli.report import Report
from rankwise.api.response_schemas.studies import StudyDocument
from rankwise.errors import (
    Conflict,
    DatasetError,
    InputError,
    NotFound,
    NothingFits,
    RankwiseError,
    RunnerError,
    StoreError,
)
from rankwise.optimizer.domain import (
    ASKED_FIELDS,
    Adapter,
    Candidate,
    Level,
    Measurement,
    Method,
    OwnLora,
    Preset,
    Quantization,
    Relation,
    Rung,
    StudyRequest,
    StudyState,
)
from rankwise.runners.lock import take_lock
from rankwise.store import Store

FILES = {"recommendation.json", "adapter_config.json", "training_args.json", "train.py", "report.html"}
HEAVY = {"torch", "transformers", "fastapi", "sqlalchemy", "sqlmodel", "uvicorn", "pyarrow"}


Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"sentence {n},{n % 2}\n" for n in range(20)))
    return str(path)


# Help and version


def test_help_imports_nothing_heavy():
    program = (
        "import sys, contextlib\n"
        "from rankwise.api.cli.main import main\n"
        "sys.argv = ['rankwise', 'recommend', '--help']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        f"sys.exit(', '.join({HEAVY!r} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        "",
        "recommend",
        "probe",
        "inspect",
        "serve",
        "studies",
        "studies list",
        "studies show",
        "studies cancel",
        "report",
        "compare",
        "db upgrade",
        "client",
        "client studies watch",
        "client recommend",
        "client export",
        "client devices",
    ],
)
def test_every_command_explains_itself(run: Run, command: str):
    result = run(*command.split(), "--help")

    assert result.code == 0
    assert f"Usage: rankwise {command}".strip() in result.out


def test_version(run: Run):
    assert run("--version").out == f"rankwise {rankwise.__version__}\n"


# Exit codes and messages


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (DatasetError("x"), 2),
        (NotFound("x"), 2),
        (Conflict("x"), 2),
        (StoreError("x"), 2),
        (NothingFits("x"), 3),
        (RunnerError("x"), 1),
    ],
)
def test_exit_codes(error: RankwiseError, code: int):
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recommend", "--model and --data missing"),
        ("recommend --model m", "--data missing"),
        ("recommend --model {tmp}/none --data {data}", "none"),
        ("recommend --model {tmp} --data {tmp}/none.csv", "none.csv"),
        ("recommend --model {tmp} --data {data} --memory-limit 10", "size '10' has no unit"),
        ("recommend --model {tmp} --data {data} --budget soon", "'soon' is not a duration"),
        ("recommend --model {tmp} --data {data} --weights pace=1", "weight 'pace' is unknown"),
        ("recommend --model {tmp} --data {data} --method adaline", "adaline"),
        ("recommend --model {tmp} --data {data} --objective cheap", "cheap"),
        ("recommend --model {tmp} --data {data} --complexity simple", "asked by the tiers only"),
        ("recommend --model {tmp} --data {data} --quantization nf8", "nf8"),
        ("recommend --model {tmp} --data {data} --chat-template {tmp}/no.jinja", "no.jinja"),
        ("recommend --model {tmp} --data {data} --preset tiny", "tiny"),
        ("recommend --model {tmp} --data {data} --only-presets", "none is named"),
        ("recommend --model {tmp} --data {data} --lora r", "LoRA setting 'r' is not of the form"),
        ("recommend --model {tmp} --data {data} --lora rank=0", "lora.rank: 0 is no rank"),
        ("recommend --config {tmp}/none.yaml", "No such file"),
        ("recommend --resume X --config {tmp}/none.yaml", "--config would have no effect"),
        ("recommend --resume X --plan", "--plan would have no effect"),
        ("recommend --resume X --budget 10m --no-packing", "--budget, --packing would have no effect"),
        ("recommend --resume X", "there is no study X"),
        ("recommend --resume X --out {data}", "cannot create"),
        ("probe --model m", "--model and --data go together"),
        ("studies show X", "there is no study X"),
        ("studies cancel X", "there is no study X"),
        ("studies list --state done", "done"),
        ("serve --host 0.0.0.0", "this server would demand a token"),
        ("nonsense", "nonsense"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(
    run: Run, tmp_path: Path, data: str, arguments: str, message: str
):
    result = run(*arguments.format(tmp=tmp_path, data=data).split())

    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_every_argument_of_a_study_has_an_option(run: Run, monkeypatch, tmp_path: Path):
    asked: list[StudyRequest] = []

    def stop(request: StudyRequest, **_: object) -> None:
        asked.append(request)
        raise InputError("seen")

    monkeypatch.setattr("rankwise.api.submission.check_request", stop)
    options = """
        --model m --data d --objective SPEED --weights speed=1 --scoring classic --memory-limit 10g
        --budget 61s --max-trials 3 --seed 9 --text-column t --label-column l --task chat --max-length 64
        --effective-batch 2 --epochs 0.5 --method LoRA --method ia3 --quantization NF4 --tiers
        --preset Balanced --only-presets --lora r=3 --lora targets=q,v --lora quantization=nf4
        --complexity "very complex" --context-column c --target-column g --no-packing --loss-mask all
        --chat-template x.jinja --model-arg depth=2 --model-arg kind=deep --model-arg 'sizes=[1, 2]'
        --time-column d --channel a --channel b --context-length 32 --prediction-length 8
        --group-column u --eval-command 'python judge.py --fast' --eval-lower-is-better
        --finish-within 6h --quality-within 2% --price-per-hour 2.5 --processes 2
    """
    baseline = tmp_path / "axolotl.yaml"
    baseline.write_text("base_model: m\nadapter: lora\nlora_r: 4\n")
    run("recommend", *shlex.split(options), "--baseline", str(baseline))

    assert asked[0].baseline is not None
    assert asked[0].baseline.settings["rank"] == 4
    for field in ASKED_FIELDS:
        assert getattr(asked[0], field.name) not in (field.default, {}), f"{field.name} cannot be asked for"
    assert asked[0].methods == (Method.LORA, Method.IA3)
    assert asked[0].presets == (Preset.BALANCED,)
    assert asked[0].lora == OwnLora(rank=3, targets=("q", "v"), quantization=Quantization.NF4)
    assert asked[0].model_arguments == {"depth": 2, "kind": "deep", "sizes": [1, 2]}
    assert asked[0].quantizations == (Quantization.NF4,)
    assert asked[0].channels == ("a", "b")
    assert asked[0].eval_command == ("python", "judge.py", "--fast")
    assert (asked[0].finish_limit_s, asked[0].quality_within, asked[0].price_per_hour) == (21_600, 0.02, 2.5)
    assert asked[0].memory_limit_bytes == 10 * 2**30


def test_options_override_a_study_file(run: Run, monkeypatch, tmp_path: Path, data: str):
    asked: list[StudyRequest] = []
    monkeypatch.setattr("rankwise.api.submission.check_request", lambda request, **_: asked.append(request))
    monkeypatch.setattr("rankwise.api.cli.recommend.show_plan", lambda *_, **__: None)
    study = tmp_path / "study.yaml"
    assert run("init", str(study), "--model", "m", "--data", data).code == 0
    with study.open("a") as file:
        file.write("seed: 5\nbudget: 2m\npresets: [efficient]\nlora: {r: 2}\n")
    assert run("recommend", "--config", str(study), "--plan", "--seed", "7", "--preset", "balanced").code == 0
    (request,) = asked
    assert (request.model, request.dataset, request.budget_s, request.seed) == ("m", data, 120.0, 7)
    assert (request.presets, request.lora) == ((Preset.BALANCED,), OwnLora(rank=2))


def test_init_replaces_no_file(run: Run, tmp_path: Path):
    study = tmp_path / "new" / "study.yaml"
    assert run("init", str(study)).code == 0
    study.write_text("mine")
    again = run("init", str(study))
    assert (again.code, study.read_text()) == (2, "mine")
    assert "exists — " in again.err or "--force" in again.err
    assert run("init", str(study), "--force").code == 0
    assert "dataset:" in study.read_text()


def test_a_plan_creates_no_folder(run: Run, monkeypatch, tmp_path: Path, data: str):
    monkeypatch.setattr("rankwise.api.submission.check_request", lambda request, **_: request)
    monkeypatch.setattr("rankwise.api.cli.recommend.show_plan", lambda *_, **__: None)

    result = run(*f"recommend --model m --data {data} --plan --out {tmp_path}/out".split())

    assert result.code == 0
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_with_a_request_is_said_at_once(run: Run, tmp_path: Path):
    result = run(*f"recommend --model {tmp_path}/no-model --data {tmp_path}/no.csv --max-trials 0".split())

    assert result.code == 2
    assert all(part in result.err for part in ("no-model", "no.csv", "max_trials"))


def test_serve_says_that_a_port_is_taken(run: Run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port))

    assert result.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.err
    assert "--port 0" in result.err


# recommend --resume: what is shown once the study is final


def test_a_recommendation_is_printed_with_its_trials_and_reasons(run: Run, script):
    script.play()

    result = run("recommend", "--resume", script.id)

    assert result.code == 0
    assert "→ 1  LORA r=16 α=32 minimal" in result.out
    assert "Recommended: LORA r=16 α=32 minimal" in result.out
    assert "#2 oom: the limit of 500 MiB was exceeded" in result.out
    assert "• It learnt as much as the others in less time." in result.out
    assert "35% of the wall time (20 s) was spent outside measured steps." in result.out
    assert f"rankwise recommend --resume {script.id} --out DIR" in result.err


def test_json_is_the_only_thing_on_standard_output(run: Run, script):
    script.play()

    document = run("recommend", "--resume", script.id, "--json").document

    assert document["schema_version"] == 1
    assert document["study"]["state"] == "succeeded"
    assert [trial["outcome"] for trial in document["trials"]] == ["ok", "oom", "ok"]
    assert document["recommendation"]["evidence"]["heldout_loss"] == 0.4123
    assert document["recommendation"]["adapter_config"]["r"] == 16
    assert document["files"] == []


def test_quiet_leaves_standard_error_empty(run: Run, script):
    script.play()

    result = run("recommend", "--resume", script.id, "--quiet")

    assert (result.code, result.err) == (0, "")


def test_the_ready_files_are_written_and_named(run: Run, script, tmp_path: Path):
    script.play()

    result = run("recommend", "--resume", script.id, "--out", str(tmp_path / "tuned"))

    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert names == FILES
    assert all(name in result.out for name in names)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("NothingFits: 22 GiB are needed — take a smaller model", 3),
        ("DatasetError: no rows — add some", 2),
        ("RunnerError: the disk is full — make room", 1),
    ],
)
def test_a_failed_study_ends_with_its_error(run: Run, script, reason: str, code: int):
    script.begin()
    script.fail(reason)
    message, next_step = reason.partition(": ")[2].split(" — ")

    result = run("recommend", "--resume", script.id, "--json")

    assert result.code == code
    assert result.document["recommendation"] is None
    assert f"error: {message}\n  → {next_step}\n" in result.err


def test_an_interrupt_says_how_to_go_on(run: Run, script, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.api.following.follow", interrupt)

    result = run("recommend", "--resume", script.id)

    assert result.code == 130
    assert f"rankwise recommend --resume {script.id}" in result.err
    assert result.out == ""


def test_a_termination_says_how_to_go_on(run: Run, script, monkeypatch, tmp_path: Path):
    def terminate(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("rankwise.api.following.follow", terminate)

    result = run("recommend", "--resume", script.id, "--out", str(tmp_path / "my files"), "--json")

    assert result.code == 143
    assert "terminated" in result.err
    assert f"rankwise recommend --resume {script.id} --out '{tmp_path}/my files' --json" in result.err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_of_the_table_is_wider_than_the_terminal(
    run: Run, script, monkeypatch, candidates, probed: Measurement, trained: Measurement, width: int
):
    adapter = Adapter(
        method=Method.LORA,
        rank=16,
        alpha=32.0,
        use_rslora=True,
        use_dora=True,
        targets=("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    )
    level = Level(gradient_checkpointing=True, compute_dtype="bfloat16", quantization=Quantization.NF4)
    elaborate: Candidate = replace(candidates[0], adapter=adapter, level=level)
    script.begin()
    script.run(elaborate, Rung.PROBE, replace(probed, tokens_per_s=1.5e6))
    script.recommend(script.run(elaborate, Rung.TRAIN, trained))
    monkeypatch.setattr(results, "_width", width)

    table = run("studies", "show", script.id, "--trials").out.split("\n\n")[1]

    assert max(map(len, table.splitlines())) <= width
    assert table.count("\n     GradCP + AMP bfloat16 + nf4, batch 4×4, lr 0.0005") == 2
    assert re.search(r"1,500,000 +430 MiB +– +– +– +probed", table)


def test_a_training_is_shown_with_the_figures_that_its_score_rests_on(run: Run, script):
    script.play()

    lines = run("studies", "show", script.id, "--trials").out.splitlines()

    [training] = [line for line in lines if line.startswith("→ 3")]
    assert re.search(r"2,346 +441 MiB +– +0\.412 +87\.5 +trained", training)


def test_reused_and_disturbed_trials_are_marked_and_explained(run: Run, script, store, candidates, probed):
    disturbed = replace(probed, disturbances=("another process used the device",))
    script.begin()
    script.run(candidates[0], Rung.PROBE, disturbed)
    trials = store.list_trials(script.id)
    older = replace(trials[0], study_id="OLDER", number=7)
    reused = replace(trials[0], number=2, measurement=probed, reused_from=older.id)

    with results.capture() as printed:
        study = store.get_study(script.id)
        Report(study=study, trials=[*trials, reused], sources={older.id: older}).print()

    table, footnotes = printed.get().split("\n\n")[1].split("#1 disturbed")
    assert re.search(r"^1 .* disturbed$", table, re.MULTILINE)
    assert re.search(r"^2 .* reused$", table, re.MULTILINE)
    assert footnotes.splitlines() == [
        ": another process used the device",
        "#2 reused from study OLDER, trial 7: the environment is the same",
    ]


def test_what_was_noticed_of_the_data_is_shown(run: Run, script, store):
    script.begin()
    study = store.get_study(script.id)
    note = "7 of 400 rows are set aside: without a label in 'label'"
    facts = replace(study.facts, dataset=replace(study.facts.dataset, notes=(note,)))

    with results.capture() as printed:
        Report(study=replace(study, facts=facts), trials=[]).print()

    assert printed.get().splitlines()[2:] == [
        "text-classification: few distinct labels",
        f"data: {note}",
        "",
    ]
    shown = StudyDocument.of(replace(study, facts=facts), {}).model_dump(mode="json")
    assert shown["facts"]["dataset"]["notes"] == [note]


# What is shown of a study that went through every stage


@pytest.fixture
def shown(finished, monkeypatch) -> Callable[..., str]:
    """The text that is printed of the finished study, at a width."""

    def printed(width: int = 100, *, all_trials: bool = False, **changes: object) -> str:
        monkeypatch.setattr(results, "_width", width)
        parts = {
            "study": finished.study,
            "trials": finished.trials,
            "estimates": finished.estimates,
            "recommendation": finished.recommendation,
            "enumerated": finished.enumerated,
        }
        with results.capture() as captured:
            Report(**parts | changes).print(all_trials=all_trials)
        return captured.get()

    return printed


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_report_keeps_within_the_terminal(shown, width: int):
    assert max(map(len, shown(width).splitlines())) <= width


def test_the_funnel_says_how_many_were_left_and_why(shown):
    text = shown(140)

    assert re.search(r"enumerated  412 candidates\n +– 1 cannot fit, by a dry run\n", text)
    assert re.search(r"probed  6 candidates of 4 adapters\n", text)
    assert "1 ran out of memory" in text
    assert re.search(r"trained 20 steps  12 candidates of 4 adapters\n", text)
    assert "6 learnt less than at another learning rate; 2 learnt less at this rung; 1 diverged" in text
    assert re.search(r"compared  3 candidates\n", text)
    assert "enumerated" not in shown(enumerated=None)


def test_the_leaderboard_has_a_line_for_each_compared_candidate(shown):
    lines = shown(110).splitlines()

    [first] = [line for line in lines if line.startswith("→ 1")]
    assert re.search(r"2,346 +441 MiB +0\.412 ± 0\.011 +2 +2 h 10 m +5\.42$", first.rstrip())
    assert any(re.search(r"^  2  LORA r=64.* no difference$", line) for line in lines)
    assert any(
        re.search(r"^  3  IA3.* 0\.474 ± 0\.011 .*5\.14  worse by 0\.042 … 0\.081$", line) for line in lines
    )


def test_the_leaderboard_says_what_is_not_known(shown, finished):
    comparisons = tuple(
        replace(each, low=-1500.0, high=1500.0, relation=Relation.UNKNOWN)
        for each in finished.recommendation.comparisons
    )
    text = shown(110, recommendation=replace(finished.recommendation, comparisons=comparisons))
    assert len(re.findall(r" not known$", text, re.MULTILINE)) == len(comparisons)
    assert not re.search(r" no difference$", text, re.MULTILINE)
    assert "Not known: too few seeds to tell." in " ".join(text.split())


def test_what_has_no_room_in_the_line_comes_below_it(shown):
    assert "\n     worse by 0.042 … 0.081\n     #21  float32" in shown(80)


def test_sweeps_are_a_line_for_each_adapter(shown):
    text = shown(110)

    assert "full fine-tuning, 20 steps: 0.0001: 0.591, 0.0005: 0.531 (kept), 0.002: diverged" in text
    assert not re.search(r"(?m)^ *(?:→ )?7  ", text)
    assert re.search(r"(?m)^ *7  ", shown(110, all_trials=True))


def test_the_time_to_finish_and_other_choices_are_told(shown):
    text = shown(120)

    assert (
        "Your 3 epochs (2,400 steps): 2 h 10 m (2 h 05 m … 2 h 16 m), about 5.42, evaluation and saving "
        "not counted"
    ) in text
    assert re.search(r"fastest +#21 IA3: 5 % faster\.", text)
    assert "hold with 95% confidence" in " ".join(text.split())
    assert "The search is complete: the leaders can be told apart.\n" in text


def test_a_study_under_way_shows_no_trial_that_only_tried_a_rate(shown, finished):
    running = replace(finished.study, state=StudyState.RUNNING)
    text = shown(study=running, recommendation=None, trials=finished.trials[:14])

    assert re.search(r"(?m)^ *8  .*trained$", text)
    assert not re.search(r"(?m)^ *7  ", text)
    assert "IA3" in text


# studies, db


def test_studies_are_listed_newest_first(run: Run, script, store):
    script.play()
    newer = store.create_study(script.request)

    assert run("studies", "list").out.index(newer.id) < run("studies", "list").out.index(script.id)
    listed = run("studies", "list", "--json").document["studies"]
    assert [study["id"] for study in listed] == [newer.id, script.id]
    assert [
        study["id"] for study in run("studies", "list", "--state", "queued", "--json").document["studies"]
    ] == [newer.id]


def test_no_studies_yet(run: Run):
    result = run("studies", "list")

    assert (result.code, result.out) == (0, "")
    assert "rankwise recommend" in result.err


def test_a_list_counts_trials_without_reading_them(run: Run, script, monkeypatch):
    script.play()
    monkeypatch.delattr("rankwise.store.trials.Trials.list_trials")

    [study] = run("studies", "list", "--json").document["studies"]

    assert study["progress"] == {"planned": 3, "running": 0, "finished": 3}


@pytest.mark.parametrize("end", ["stopped", "stopped while reading", "killed"])
def test_a_study_that_nobody_works_on_is_interrupted(run: Run, script, store, home, end: str):
    if end == "stopped while reading":
        script.take()
    else:
        script.begin()
    if end != "killed":
        store.release_study(script.claim)
    untouched = store.create_study(script.request)

    listed = run("studies", "list")
    shown = run("studies", "show", script.id)

    [_, state] = [study["state"] for study in run("studies", "list", "--json").document["studies"]]
    assert re.search(rf"{script.id} +{state}, interrupted", listed.out)
    assert re.search(rf"{untouched.id} +queued", listed.out)
    assert "rankwise recommend --resume ID" in listed.err
    assert f"Study {script.id}  {state}, interrupted" in shown.out
    told = {
        study["id"]: study["interrupted"] for study in run("studies", "list", "--json").document["studies"]
    }
    assert told == {script.id: True, untouched.id: False}
    assert f"rankwise recommend --resume {script.id}" in shown.err
    lock = take_lock(home, None)
    assert lock is not None
    with lock:
        assert "interrupted" not in run("studies", "list").out


def test_show_of_a_running_study_shows_what_there_is(run: Run, script, home):
    script.begin()
    script.start(script.candidate(learning_rate=1e-4), Rung.PROBE)

    lock = take_lock(home, script.id)
    assert lock is not None
    with lock:
        result = run("studies", "show", script.id)

    assert result.code == 0
    assert f"Study {script.id}  running" in result.out
    assert "Recommended" not in result.out
    assert f"--resume {script.id}" in result.err


def test_show_says_why_a_study_failed(run: Run, script):
    script.begin()
    script.fail("RunnerError: the disk is full")

    result = run("studies", "show", script.id)

    assert result.code == 0
    assert "failed: RunnerError: the disk is full" in result.out


def test_a_queued_study_is_cancelled_at_once(run: Run, script, store):
    result = run("studies", "cancel", script.id, "--json")

    assert result.document["study"]["state"] == "cancelled"
    assert store.get_study(script.id).state is StudyState.CANCELLED


def test_a_running_study_is_asked_to_stop(run: Run, script, store):
    script.begin()

    result = run("studies", "cancel", script.id)

    assert "will be cancelled" in result.out
    assert store.get_study(script.id).cancel_requested


def test_db_upgrade_creates_the_database_and_then_finds_it_current(run: Run, home):
    first = run("db", "upgrade", "--json").document
    second = run("db", "upgrade").out

    assert first == {"schema_version": 1, "database": str(home.database), "old": None, "new": first["new"]}
    assert f"is at version {first['new']} already" in second


def test_commands_use_the_database_that_the_environment_names(
    run: Run, monkeypatch: pytest.MonkeyPatch, postgres_url: str, home
):
    monkeypatch.setenv("RANKWISE_DATABASE_URL", postgres_url)
    with closing(Store.open(postgres_url)) as store:
        study = store.create_study(StudyRequest(model="m", dataset="d"))

    (listed,) = run("studies", "list", "--json").document["studies"]
    upgraded = run("db", "upgrade", "--json").document

    assert listed["id"] == study.id
    assert upgraded["database"].startswith("postgresql://")
    assert upgraded["old"] == upgraded["new"]
    assert list(home.root.glob("*.db")) == []


def test_a_database_out_of_reach_is_bad_input_and_keeps_its_password(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANKWISE_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x")

    result = run("studies", "list")

    assert result.code == 2
    assert "127.0.0.1:1/x" in result.err
    assert "RANKWISE_DATABASE_URL" in result.err
    assert "secret" not in result.err


def test_probe_shows_the_hardware(run: Run):
    document = run("probe", "--json").document

    assert document["hardware"]["host"]["ram_total_bytes"] > 0
    assert document["model"] is None
    assert "RAM" in run("probe").out
