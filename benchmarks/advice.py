"""How good the advice is, on trainings that were all run once: a tabular benchmark.

    python benchmarks/advice.py replay             # strategies on the committed bank: a few minutes

    python benchmarks/advice.py collect            # models, data and all trainings: 80 minutes on two cores
    python benchmarks/advice.py collect --null     # afterwards: many seeds of a few configurations
    python benchmarks/advice.py collect --truth    # after gather: more seeds of what might be best
    python benchmarks/advice.py probe              # speed and memory of every shape, alone on the machine
    python benchmarks/advice.py gather             # all of it into benchmarks/advice_data
    python benchmarks/advice.py collect --wanted   # what replays asked for in vain; then gather again

Trainings take one core each: run ``collect --part 0 --parts 2`` beside ``collect --part 1 --parts 2``. What
is collected is kept under ``build/advice``: a collection that was cut off goes on. ``replay`` holds what
strategies choose against the truth and writes ``docs/advice.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = REPOSITORY / "build" / "advice"
BANK = REPOSITORY / "benchmarks" / "advice_data"
PAGE = REPOSITORY / "docs" / "advice.md"


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("collect", help="run the trainings that are not there")
    collect.add_argument("--part", type=int, default=0, help="of several processes, this one's number")
    collect.add_argument("--parts", type=int, default=1, help="processes that share the work")
    which = collect.add_mutually_exclusive_group()
    which.add_argument("--null", action="store_true", help="the null bank; the grid comes first")
    which.add_argument("--truth", action="store_true", help="more seeds of what might be a task's best")
    which.add_argument("--wanted", action="store_true", help="what replays asked for in vain")
    probe = commands.add_parser("probe", help="probe the shapes that are not there")
    gather = commands.add_parser("gather", help="add what was collected to benchmarks/advice_data")
    replay = commands.add_parser("replay", help="let strategies choose, and write docs/advice.md")
    replay.add_argument("--seeds", type=int, default=20, help="replays of each strategy a task and budget")
    replay.add_argument(
        "--budgets", nargs="+", type=float, default=[6.0, 12.0, 24.0], help="in full trainings"
    )
    replay.add_argument("--strategies", nargs="+", metavar="NAME", help="those whose names begin so")
    replay.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    for each in (collect, probe, gather, replay):
        each.add_argument("--only", nargs="+", metavar="TASK", help="these tasks; default: all")
    arguments = parser.parse_args()
    if arguments.command == "replay":
        run_replays(arguments)
    else:
        run_collection(arguments)
    return 0


def run_collection(arguments: argparse.Namespace) -> None:
    """Trainings or probes of the tasks, or gathering them."""
    import torch
    import transformers
    from advice_parts import collecting, models, sources, tasks
    from advice_parts.bank import load, names_in

    from rankwise.home import Home

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    data = sources.write_all(BUILD / "data")
    if arguments.command == "collect":  # a probe forks, and its children must be the first to use threads
        torch.set_num_threads(1)
    chosen = [task for task in tasks.TASKS if not arguments.only or task.name in arguments.only]
    made = models.make_all(BUILD / "models", only={task.model for task in chosen})
    runs = BUILD / "runs"
    for task in chosen:
        started_s = time.monotonic()
        setup = collecting.Setup.of(task, made, data, Home(BUILD / "home"))
        if arguments.command == "gather":
            bank = collecting.gather(setup, runs)
            if not bank.grid and task.name in names_in(BANK):
                more, bank = bank, load(BANK, task.name)
                bank.add(more)
            if not bank.grid:
                print(f"{task.name}: no adapter has all its trainings yet", flush=True)
                continue
            bank.save(BANK, below="build/advice")
            done = len(bank.trained) + len(bank.probed)
        elif arguments.command == "probe":
            done = collecting.run_probes(setup, runs)
        elif arguments.wanted:
            done = collecting.run_wanted(setup, runs, part=arguments.part, parts=arguments.parts)
        else:
            jobs = collecting.jobs_of(setup)
            if arguments.truth:
                jobs = collecting.truth_jobs(load(BANK, task.name))
            elif arguments.null:
                jobs = collecting.null_jobs(load(BANK, task.name))
            done = collecting.run_trainings(setup, runs, jobs, part=arguments.part, parts=arguments.parts)
        print(f"{task.name}: {done} done in {time.monotonic() - started_s:.0f} s", flush=True)


def run_replays(arguments: argparse.Namespace) -> None:
    """Let strategies choose on every bank, and write what came of it."""
    from advice_parts import page
    from advice_parts.bank import load, names_in

    names = [name for name in names_in(BANK) if not arguments.only or name in arguments.only]
    banks = [load(BANK, name) for name in names]
    replays = page.replay_all(
        banks,
        seeds=arguments.seeds,
        budgets=arguments.budgets,
        only=arguments.strategies,
        wanted=BUILD / "wanted",
    )
    arguments.page.write_text(page.compose(banks, replays, seeds=arguments.seeds), encoding="utf-8")
    print(f"written to {arguments.page}")


if __name__ == "__main__":
    sys.exit(main())
