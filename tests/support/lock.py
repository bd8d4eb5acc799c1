"""Write `requirements/*.lock`: `make lock`, or `make lock UPGRADE=1` for the newest versions.

pip resolves everything once, under the settings of the machine it runs on. Each lock is then the closure
of some roots in that one solution, with exact versions, so that `pip install --no-deps` installs it without
a resolver and all locks agree. A lock holds what Python 3.11, 3.12 and 3.13 need.

torch comes in several builds, for processors alone or for one version of CUDA, and each brings libraries of
its own. They are left out here: the Makefile installs torch first, with what its build needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "requirements"
PYTHONS = ("3.11", "3.12", "3.13")
# lock -> names in pyproject.toml: `core` for the package's own dependencies, or an extra, or a group
LOCKS: Mapping[str, Sequence[str]] = {
    "demo": "build core attacks dp".split(),
    "real": "build core attacks dp gguf".split(),
    "test": (
        "build core attacks ckks datasets deploy dev docs dp evidence gguf light lm-eval mlflow simulation "
        "wandb"
    ).split(),
    "light": "build light".split(),
    "docs": "build docs".split(),
    "mutation": "build mutation".split(),
}
# lock -> groups of exact versions that it holds alone, without what they require
ALONE: Mapping[str, Sequence[str]] = {"real": ["llms"], "test": ["llms"]}
OF_ONE_TORCH_BUILD = ("cuda-", "nvidia-", "triton")

Solution = dict[str, tuple[str, list[Requirement]]]  # name -> version, what it requires


def roots(lock: str) -> list[Requirement]:
    """Return the requirements of pyproject.toml that `lock` starts from."""
    return _named(LOCKS[lock])


def alone(lock: str) -> dict[str, str]:
    """Return name -> version of what `lock` holds without what it requires."""
    return {
        canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in _named(ALONE.get(lock, ()))
    }


def _named(names: Sequence[str]) -> list[Requirement]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    sections = {"core": project["dependencies"], **project["optional-dependencies"]}
    sections |= document["dependency-groups"]
    return [Requirement(text) for name in names for text in sections[name]]


def solve(requirements: Sequence[str], pins: Sequence[str]) -> Solution:
    """Resolve `requirements` together, held to `pins`, without installing anything."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        constraints.write_text("\n".join(pins), encoding="utf-8")
        pip = [sys.executable, *"-m pip -qq install --dry-run --ignore-installed".split()]
        options = ["--constraint", str(constraints), "--report", str(report)]
        if subprocess.run([*pip, *options, *requirements], check=False).returncode:
            sys.exit("error: pip cannot resolve pyproject.toml within the locks; try `make lock UPGRADE=1`")
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {canonicalize_name(p["metadata"]["name"]): _entry(p["metadata"]) for p in packages}


def _entry(metadata: Mapping[str, Any]) -> tuple[str, list[Requirement]]:
    requires = [Requirement(text) for text in metadata.get("requires_dist", ())]
    return Version(metadata["version"]).public, requires


def closure(solution: Solution, start: Sequence[Requirement], python: str) -> set[str]:
    """Return the names of all packages that `start` needs under `python`, on Linux or macOS."""
    names: set[str] = set()
    visited: set[tuple[str, str]] = set()
    queue = [(requirement, "") for requirement in start]
    while queue:
        requirement, asked_with = queue.pop()
        environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": asked_with}
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if name.startswith(OF_ONE_TORCH_BUILD):
            continue
        names.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in visited:
                visited.add((name, extra))
                queue += [(inner, extra) for inner in solution.get(name, ("", []))[1]]
    return names


def main() -> None:
    """Write all locks; with the argument `--upgrade`, versions are not held to those of today's locks."""
    pins: list[str] = []
    if "--upgrade" not in sys.argv[1:]:
        lines = {line for file in FOLDER.glob("*.lock") for line in file.read_text("utf-8").splitlines()}
        pins = sorted(line for line in lines if line and not line.startswith("#"))
    starts = {lock: roots(lock) for lock in LOCKS}
    texts = sorted({str(requirement) for start in starts.values() for requirement in start})
    while True:
        solution = solve(texts, pins)
        locked = {
            lock: set().union(*(closure(solution, start, python) for python in PYTHONS))
            for lock, start in starts.items()
        }
        missing = set().union(*locked.values()) - set(solution)
        if not missing:
            break
        texts += sorted(missing)  # what only another Python needs
    FOLDER.mkdir(exist_ok=True)
    for lock, names in locked.items():
        versions = {name: solution[name][0] for name in names} | alone(lock)
        lines = [f"{name}=={versions[name]}" for name in sorted(versions)]
        (FOLDER / f"{lock}.lock").write_text("\n".join(["# by `make lock`", *lines, ""]), encoding="utf-8")
        print(f"requirements/{lock}.lock: {len(versions)} packages")


if __name__ == "__main__":
    main()
