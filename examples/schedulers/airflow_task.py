"""A task of Airflow, or of whatever calls Python: the recommended settings as data for the next task.

    from airflow.decorators import dag, task
    from airflow_task import recommended_settings

    @dag(schedule="@weekly")
    def tune():
        @task(retries=3)
        def settings(run_id=None):
            return recommended_settings("/models/llama", "/data/chats.jsonl", key=run_id, budget="45m")

        train(settings())

The key makes retries safe: a task that is tried again, on whatever worker, waits for the study that the
first try asked for. ``RANKWISE_URL`` and ``RANKWISE_TOKEN`` come from the worker's environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rankwise import Client


def recommended_settings(
    model: str, dataset: str, *, key: str | None = None, timeout_s: float | None = None, **options: Any
) -> dict[str, Any]:
    """What the next task needs: how to train, and what to ask for.

    Raises:
        rankwise.errors.NothingFits: no configuration meets the limits: trying again does not help.
        rankwise.errors.RemoteError: the server is away: trying again does.
    """
    with Client() as server:
        found = server.recommend(model, dataset, key=key, timeout_s=timeout_s, **options)
        files = server.files(found.study_id).files
    candidate, asked = found.candidate, found.resources
    return {
        "study_id": found.study_id,
        "description": found.description,
        "adapter_config": found.adapter_config,
        "training_args": json.loads(files["training_args.json"]),
        "micro_batch": candidate.micro_batch,
        "learning_rate": candidate.learning_rate,
        "gpus": asked.gpus if asked else None,
        "gpu_bytes": asked.gpu_bytes if asked else None,
        "host_bytes": asked.host_bytes if asked else None,
        "hours": asked.hours.mid if asked and asked.hours else None,
        "limit_s": asked.limit_s if asked else None,
    }


if __name__ == "__main__":
    print(json.dumps(recommended_settings(*sys.argv[1:3]), indent=2))
