"""Programs run as ``python -I program.py`` runs them, without each importing the same libraries for seconds.

An isolated interpreter imports what is slow once and forks for every program; a fork knows nothing of what
another did. It shares nothing with the tests' own process, so a program still finds only what public packages
and its own file hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOW = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors.torch")

SERVER = """
import gc, importlib, json, os, runpy, sys

gc.disable()
for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()
gc.enable()
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        break
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
else:
    sys.exit()

# A fork, which goes on as the program: what is raised below ends it as it would end any.
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["environment"])
for number, path in enumerate((os.devnull, asked["stdout"], asked["stderr"])):
    opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)
sys.argv = asked["command"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class WarmPython:
    """An interpreter with the libraries loaded, ready to run programs one after the other."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def run(self, program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program in its folder to its end, with the environment of now."""
        command = [str(program), *map(str, arguments)]
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            asked = {
                "command": command,
                "folder": str(program.parent),
                "environment": dict(os.environ),
                "stdout": stdout.name,
                "stderr": stderr.name,
            }
            self._server.stdin.write(json.dumps(asked) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


@contextmanager
def warm_python() -> Iterator[WarmPython]:
    """One that ends with the block."""
    command = [sys.executable, "-I", "-c", SERVER, *SLOW]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield WarmPython(server)
