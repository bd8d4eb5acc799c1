"""The Flower app of this project: a few lines that import the server app and the client app.

The app has no code of its own and no settings of a run, so that every installation of one version builds
the same bytes. A site compares their hash with that of the app that a SuperLink offers, and runs no other.
What it imports is each installation's own; `sources_sha256` tells whether two installations have the same.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from fedproxy_secure.flower.internals.messages import pack_app

SERVER = "fedproxy_secure.flower.server_app"
FAB_ID = "fedproxy-secure/fedproxy-app"
FAB_VERSION = "1.0.0"
PACKAGE = Path(__file__).parents[2]
_APP = """from fedproxy_secure.flower.client_app import app as client
from {server} import app as server

__all__ = ["client", "server"]
"""
_PYPROJECT = """[project]
name = "fedproxy-app"
version = "1.0.0"
description = "FedProxy-Secure's server app and client app"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedproxy-secure"

[tool.flwr.app.components]
serverapp = "fedproxy_app:server"
clientapp = "fedproxy_app:client"
"""


def app_files(server: str = SERVER) -> dict[str, bytes]:
    """Return the app's files by name; `server` names the module of the server app."""
    return {"fedproxy_app.py": _APP.format(server=server).encode(), "pyproject.toml": _PYPROJECT.encode()}


def write_app(folder: Path, server: str = SERVER) -> None:
    """Write the app into `folder`, from which `flwr run` submits it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in app_files(server).items():
        (folder / name).write_bytes(content)


@lru_cache
def app_sha256(server: str = SERVER) -> str:
    """Return the hash of the app as Flower packs it, 64 hex digits."""
    return hashlib.sha256(pack_app(app_files(server))).hexdigest()


@lru_cache
def sources_sha256(package: Path = PACKAGE) -> str:
    """Return the hash of a package's Python sources, by default of this one, 64 hex digits.

    A checkout, a wheel built from it and the installed package have the same hash: names and contents
    count, line ends and hidden files do not. Not covered: dependencies, and packages that extend this one.
    """
    files = {file.relative_to(package): file for file in package.rglob("*.py")}
    hashes = {
        name.as_posix(): hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        for name, file in files.items()
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
