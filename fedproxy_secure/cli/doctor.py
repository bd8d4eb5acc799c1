"""Checks of this installation: one line each, with what to do if the check fails.

Torch is loaded inside the checks that need it, so that a broken torch is a failed check, not a crash.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from fedproxy_secure.runtime.artifacts import installed

MIN_FREE_BYTES = 2**30
PYTHONS = ((3, 11), (3, 14))  # from, below
FOR_DEVELOPERS = ("dev", "docs", "mutation")  # extras that users of the package do not need
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check: what was checked, whether it passed, and what was found."""

    name: str
    ok: bool
    found: str


def checks(folder: Path) -> Iterator[Check]:
    """Yield every check, cheap ones first; `folder` is where runs would be written."""
    yield python_version()
    yield from package_versions()
    yield free_disk(folder)
    yield _caught("device", _device)
    yield _caught("threads", _threads)
    yield _caught("demo LLM", _demo_llm)
    yield gguf_files()
    yield smollm2()


def python_version(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Check that the interpreter is one that every dependency has wheels for."""
    low, below = PYTHONS
    ok = low <= version < below
    rule = "" if ok else f"; needs >= {low[0]}.{low[1]} and < {below[0]}.{below[1]}"
    return Check(name="Python", ok=ok, found=platform.python_version() + rule)


def package_versions() -> Iterator[Check]:
    """Yield a check for each declared dependency; one of an extra may be missing, but not wrong."""
    declared: dict[tuple[str, str], tuple[Requirement, list[str | None]]] = {}
    for text in declared_requirements():
        requirement = Requirement(text)
        extra = _EXTRA.search(str(requirement.marker))
        one = declared.setdefault((requirement.name, str(requirement.specifier)), (requirement, []))
        one[1].append(None if extra is None else extra[1])
    for requirement, extras in declared.values():
        named = [extra for extra in extras if extra is not None]
        shown = [extra for extra in named if extra not in FOR_DEVELOPERS or installed(requirement.name)]
        if None in extras:
            yield against_pin(requirement, required=True)
        elif shown:
            yield against_pin(requirement, required=False, extra="`, `".join(shown))


def against_pin(requirement: Requirement, *, required: bool, extra: str | None = None) -> Check:
    """Check that the installed version of one package meets its requirement.

    Args:
        requirement: the package and the versions that are fit.
        required: whether the package may not be missing.
        extra: the extra that installs it, or several, where it may be missing.
    """
    version = installed(requirement.name)
    if version is None:
        optional = "not installed (optional)" if extra is None else f"not installed (extra `{extra}`)"
        detail = "is missing: install it" if required else optional
        return Check(name=requirement.name, ok=not required, found=detail)
    ok = requirement.specifier.contains(version, prereleases=True)
    whose = "" if extra is None else f" (extra `{extra}`)"
    detail = f"{version}{whose}" if ok else f"{version}{whose}; needs {requirement.specifier}"
    return Check(name=requirement.name, ok=ok, found=detail)


def declared_requirements() -> list[str]:
    """Return the requirements of the installed distribution, or of pyproject.toml in a source tree."""
    try:
        return metadata.requires("fedproxy-secure") or []
    except metadata.PackageNotFoundError:
        source = Path(__file__).parents[2] / "pyproject.toml"
        if not source.is_file():
            return []
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return list(project["dependencies"])


def free_disk(folder: Path, need: int = MIN_FREE_BYTES) -> Check:
    """Check that the disk of `folder` has `need` bytes left."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    rule = "" if free >= need else f"; needs {need / 2**30:.1f} GiB"
    return Check(name="free disk", ok=free >= need, found=f"{free / 2**30:.1f} GiB{rule}")


def _device() -> str:
    import torch

    from fedproxy_secure.models.llm import pick_device
    from fedproxy_secure.models.mixed import has_amx

    device = pick_device("auto")
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu with AMX: model.dtype=mixed is faster for a real LLM" if has_amx() else "cpu"


def _threads() -> str:
    import torch

    wish = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"torch uses {torch.get_num_threads()} of {os.cpu_count()}; OMP_NUM_THREADS {wish}"


def _demo_llm() -> str:
    import torch

    from fedproxy_secure.models.llm import load_llm, parameter_count

    model, tokenizer = load_llm("demo", device="cpu", dtype="float32")
    with torch.no_grad():
        logits = model(**tokenizer("hello", return_tensors="pt")).logits
    if not torch.isfinite(logits).all():
        raise ValueError("one forward pass gave numbers that are not finite")
    return f"{parameter_count(model) / 1e6:.1f} M parameters; one forward pass gave finite numbers"


def gguf_files() -> Check:
    """Say whether GGUF files can be read, which needs a package of its own; they are optional."""
    from fedproxy_secure.models.gguf import can_be_read

    without = "cannot be read (optional); run `make real`, or pip install gguf"
    return Check(name="GGUF files", ok=True, found="can be read" if can_be_read() else without)


def smollm2() -> Check:
    """Check that the packaged LLM `smollm2` has its file, if its package is installed: it is optional."""
    from fedproxy_secure.models.packaged import PACKAGED, packaged_file

    llm = PACKAGED["smollm2"]
    version = installed(llm.package)
    if version is None:
        return Check(name="smollm2", ok=True, found=f"not installed (optional); {llm.remedy}")
    return _caught("smollm2", lambda: f"{packaged_file(llm).name} in {llm.package} {version}")


def _caught(name: str, look: Callable[[], str]) -> Check:
    """Run one check, and report what it raises as its result: a diagnosis must not stop at one error."""
    try:
        return Check(name=name, ok=True, found=look())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Check(name=name, ok=False, found=reason)
