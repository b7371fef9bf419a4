"""Requests made from the service's own description, right and wrong ones, to a real server: schemathesis.

Run ``python benchmarks/api_fuzz.py`` (some ten minutes on two cores for 5,000 requests and more;
``--examples 5`` for a look). It ends with 1 if an answer was a server's error (5xx), or not as described:
status, media type, headers, body. Fewer requests than ``--least`` are a failure too. Two studies with
invented figures are there to be read.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from seeded_study import seed_study

from rankwise.home import Home
from rankwise.store import Store

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
LEFT_OUT = ("/v1/events/stream", "/v1/studies/{study_id}/events/stream", "/v1/tokens/{token_id}")
"""What never ends, and what would end the run: ids in answers are asked for again, its own token's too."""
HOOKS = Path(__file__).with_name("api_fuzz_hooks.py")


def seed(home: Home) -> dict[str, list[str]]:
    """A succeeded study and a queued one. Returns what paths may name."""
    with closing(Store.open(home.create().database)) as store:
        done = seed_study(store, trials=120)
        waiting = store.create_study(store.get_study(done).request, owner="fuzz").id
        trials = [trial.id for trial in store.list_trials(done)]
    return {"study_id": [done, waiting], "other": [done], "trial_id": trials[:5]}


@contextmanager
def served(home: Home, root: Path) -> Iterator[tuple[str, str]]:
    """A server that demands tokens and works on nothing but questions; its URL and a submitter's token."""
    rankwise = str(Path(sysconfig.get_path("scripts")) / "rankwise")
    environment = {**os.environ, "RANKWISE_HOME": str(home.root), "HF_HUB_OFFLINE": "1"}
    environment.pop("RANKWISE_DATABASE_URL", None)
    made = subprocess.run(
        [rankwise, "tokens", "create", "--role", "admin", "--name", "fuzz"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    log = home.root / "server.log"
    command = [
        rankwise,
        "serve",
        "--port",
        "0",
        "--require-token",
        "--rate-limit",
        "0",
        "--allow-root",
        str(root),
    ]
    with (
        log.open("w") as written,
        subprocess.Popen(
            [*command, "--log-format", "json"], env=environment, stderr=written, cwd=root
        ) as process,
    ):
        try:
            url = None
            while url is None and process.poll() is None:
                url = re.search(r"http://[\d.]+:\d+", log.read_text())
            if url is None:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            yield url[0], made.stdout.strip()
        finally:
            process.terminate()


def main() -> int:
    """Fuzz, count and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=250, help="of each operation and phase, at most")
    parser.add_argument("--least", type=int, default=5000, help="requests that make a proof")
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-time", type=int, help="seconds after which no new requests are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, root = Home(Path(folder) / "home", None), Path(folder) / "root"
        root.mkdir()
        known = seed(home)
        with served(home, root) as (url, token):
            ask = urllib.request.Request(f"{url}/openapi.json", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
            with urllib.request.urlopen(ask, timeout=120) as described:  # noqa: S310 - it is made on first sight
                described.read()
            command = [
                str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
                "run",
                f"{url}/openapi.json",
                f"--header=Authorization: Bearer {token}",
                f"--checks={','.join(CHECKS)}",
                f"--max-examples={options.examples}",
                f"--phases={options.phases}",
                f"--seed={options.seed}",
                "--continue-on-failure",
                "--warnings=off",
                "--suppress-health-check=all",
                *(f"--exclude-path={path}" for path in LEFT_OUT),
                *([f"--max-time={options.max_time}"] if options.max_time else []),
            ]
            environment = {
                **os.environ,
                "SCHEMATHESIS_HOOKS": str(HOOKS),
                "RANKWISE_FUZZ_IDS": json.dumps(known),
            }
            done = subprocess.run(command, env=environment, cwd=folder, check=False)
        lines = [json.loads(line) for line in (home.root / "server.log").read_text().splitlines()]
    statuses = Counter(line["status"] for line in lines if "status" in line)
    broken = [line for line in lines if line.get("status", 0) >= 500 or "traceback" in line]
    for line in broken[:20]:
        print(json.dumps(line))
    proof = statuses.total() - statuses[401]  # which is the same answer whatever was asked
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}; {len(broken)} broke")
    return int(done.returncode != 0 or bool(broken) or proof < options.least)


if __name__ == "__main__":
    sys.exit(main())
