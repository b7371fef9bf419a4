"""``rankwise devices``: which devices are not used, and using them all the same. Looks at none itself."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from ...optimizer.domain import SCHEMA_VERSION
from .console import print_json, print_note, results
from .options import AsJson
from .places import home_to_read, home_to_work_in

app = typer.Typer(no_args_is_help=True, help="Devices in quarantine, on which no trial is started.")


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List devices in quarantine, with the reason."""
    from ...store import Store

    with closing(Store.open(home_to_read().database)) as store:
        found = store.list_quarantines()
    if as_json:
        devices = [
            {
                "device": each.device,
                "cause": each.cause,
                "reason": each.reason,
                "since": each.since.isoformat(),
            }
            for each in found
        ]
        print_json({"schema_version": SCHEMA_VERSION, "devices": devices})
        return
    if not found:
        print_note("no device is in quarantine")
    for each in found:
        results.print(f"{each.device}  since {each.since:%Y-%m-%d %H:%M} UTC: {each.reason}", soft_wrap=True)


@app.command()
def release(
    context: typer.Context,
    device: Annotated[str, typer.Argument(metavar="UUID", help="The device, as `devices list` names it.")],
) -> None:
    """Use a device in spite of what is wrong with it, until something else is."""
    from ...store import Store

    with closing(Store.open(home_to_work_in(context).database)) as store:
        released = store.release_device(device)
    results.print(f"{device} is used again, in spite of this: {released.reason}", soft_wrap=True)
