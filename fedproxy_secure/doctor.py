"""Is this installation fit to run? One check per line, each with what to do if it fails.

Torch is loaded inside the checks that need it, so that a broken torch is a finding, not a crash.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

MIN_FREE_BYTES = 2**30
PYTHONS = ((3, 11), (3, 14))  # from, below


@dataclass(frozen=True, kw_only=True)
class Check:
    """One finding: what was looked at, whether it is fit, what was found."""

    name: str
    ok: bool
    found: str


def checks(folder: Path) -> Iterator[Check]:
    """Every check, cheap ones first; `folder` is where runs would be written."""
    yield python_version()
    yield from package_versions()
    yield free_disk(folder)
    yield _caught("device", _device)
    yield _caught("threads", _threads)
    yield _caught("demo LLM", _demo_llm)


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """The interpreter is one that every dependency has wheels for."""
    low, below = PYTHONS
    found = platform.python_version()
    ok = low <= version < below
    rule = "" if ok else f"; needs >= {low[0]}.{low[1]} and < {below[0]}.{below[1]}"
    return Check(name="Python", ok=ok, found=found + rule)


def package_versions() -> Iterator[Check]:
    """Each declared dependency against its pin; one of an extra may be missing, but not wrong."""
    for text in declared_requirements():
        requirement = Requirement(text)
        core = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        yield against_pin(requirement, required=core)


def against_pin(requirement: Requirement, *, required: bool) -> Check:
    """Whether the installed version of one package meets its requirement."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        found = "is missing: install it" if required else "not installed (optional)"
        return Check(name=requirement.name, ok=not required, found=found)
    ok = requirement.specifier.contains(version, prereleases=True)
    return Check(
        name=requirement.name,
        ok=ok,
        found=version if ok else f"{version}; needs {requirement.specifier}",
    )


def declared_requirements() -> list[str]:
    """What the installed distribution declares, or pyproject.toml in a source tree."""
    try:
        return metadata.requires("fedproxy-secure") or []
    except metadata.PackageNotFoundError:
        source = Path(__file__).parents[1] / "pyproject.toml"
        if not source.is_file():
            return []
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return list(project["dependencies"])


def free_disk(folder: Path, need: int = MIN_FREE_BYTES) -> Check:
    """Whether the disk of `folder` has `need` bytes left."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    rule = "" if free >= need else f"; needs {need / 2**30:.1f} GiB"
    return Check(name="free disk", ok=free >= need, found=f"{free / 2**30:.1f} GiB{rule}")


def _device() -> str:
    import torch

    from fedproxy_secure.llm import pick_device

    device = pick_device("auto")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _threads() -> str:
    import torch

    wish = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"torch uses {torch.get_num_threads()} of {os.cpu_count()}; OMP_NUM_THREADS {wish}"


def _demo_llm() -> str:
    import torch

    from fedproxy_secure.llm import load_llm, parameter_count

    model, tokenizer = load_llm("demo", device="cpu", dtype="float32")
    with torch.no_grad():
        logits = model(**tokenizer("hello", return_tensors="pt")).logits
    if not torch.isfinite(logits).all():
        raise ValueError("one forward pass gave numbers that are not finite")
    return f"{parameter_count(model) / 1e6:.1f} M parameters, one forward pass is fine"


def _caught(name: str, look: Callable[[], str]) -> Check:
    """Run one check; whatever it raises is its finding: a diagnosis must not stop at the first."""
    try:
        return Check(name=name, ok=True, found=look())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(name=name, ok=False, found=reason)
