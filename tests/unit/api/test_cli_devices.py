from __future__ import annotations

import json
from contextlib import closing

from typer.testing import CliRunner

from rankwise.api.cli.main import app
from rankwise.errors import NotFound
from rankwise.home import Home
from rankwise.store import QuarantineCause, Store


def test_devices_in_quarantine_are_listed_and_released(home: Home) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["devices", "list"]).exit_code == 0
    with closing(Store.open(home.database)) as store:
        store.quarantine_device("GPU-1", QuarantineCause.MEMORY, "3 GiB are missing")
    listed = json.loads(runner.invoke(app, ["devices", "list", "--json"]).stdout)
    (device,) = listed["devices"]
    assert (device["device"], device["cause"], device["reason"]) == ("GPU-1", "memory", "3 GiB are missing")
    assert "GPU-1" in runner.invoke(app, ["devices", "list"]).stdout
    released = runner.invoke(app, ["devices", "release", "GPU-1"])
    assert "in spite of this: 3 GiB are missing" in released.stdout
    assert json.loads(runner.invoke(app, ["devices", "list", "--json"]).stdout)["devices"] == []
    assert isinstance(runner.invoke(app, ["devices", "release", "GPU-1"]).exception, NotFound)
