"""Brings the dashboard's libraries from their packages, by npm: `make vendor`, after a version was changed.

Each package is held against the integrity beside its version in versions.json, where there is one; its files
are copied as they are, and their hashes noted there. A test holds the files against these.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "api" / "dashboard" / "vendor"
VERSIONS = FOLDER / "versions.json"


def fetch(package: str, version: str, into: Path) -> Path:
    """The package's archive."""
    command = ["npm", "pack", "--json", "--ignore-scripts", f"{package}@{version}"]
    listing = subprocess.run(command, cwd=into, check=True, capture_output=True, text=True).stdout
    return into / json.loads(listing)[0]["filename"]


def main() -> None:
    versions = json.loads(VERSIONS.read_text())
    for package, about in versions.items():
        with tempfile.TemporaryDirectory() as folder:
            archive = fetch(package, about["version"], Path(folder))
            found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if about.setdefault("integrity", found) != found:
                raise SystemExit(f"{package} {about['version']} is {found}, not {about['integrity']}")
            with tarfile.open(archive) as packed:
                for name, entry in about["files"].items():
                    member = packed.extractfile(f"package/{entry['from']}")
                    if member is None:
                        raise SystemExit(f"{package} has no file {entry['from']}")
                    content = member.read()
                    (FOLDER / name).write_bytes(content)
                    entry["sha256"] = hashlib.sha256(content).hexdigest()
    VERSIONS.write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
