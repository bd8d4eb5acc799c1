"""The SBOM of a run: CycloneDX 1.6 JSON with its models and the packages that this project requires.

Models are components of the type `machine-learning-model`, with a file component for each of their files.
Packages are those that the core of `fedproxy-secure` requires, and what these require, as they are
installed where the bundle is made. Where the run logged another version, that one stands, as it is the one
that ran; `fedproxy-secure:version-from` says which. Nothing in it depends on the time of bundling.

Needs the extra `evidence` (cyclonedx-python-lib).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fedproxy_secure.bundle.model_signature import root_digest
from fedproxy_secure.bundle.source import Model
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.runtime.artifacts import installed
from fedproxy_secure.runtime.files.names import ADAPTER, FUSED, PROXY

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

PROJECT = "fedproxy-secure"
ROLES = {
    PROXY: "the compressed LLM that clients hold and tune",
    ADAPTER: "what the federation trained on the proxy",
    FUSED: "the LLM with the federation's result plugged in",
}

_version = cache(installed)  # many packages require the same one


def check_installed() -> None:
    """Raise `ConfigError`, naming the extra, unless cyclonedx-python-lib is installed."""
    try:
        import cyclonedx  # noqa: F401
    except ImportError as error:
        raise ConfigError("evidence bundle: needs the extra `evidence` (cyclonedx-python-lib)") from error


def sbom(models: Sequence[Model], *, run: str, name: str, time: str, ran: Mapping[str, Any]) -> bytes:
    """Return the SBOM as JSON.

    Args:
        models: the run's models.
        run: the run's random number, hex; the serial number follows from it.
        name: the run's name.
        time: when the run ended, ISO 8601 with offset, as its audit log has it.
        ran: the environment that the run logged: `packages` by name.

    Raises `ConfigError` without cyclonedx-python-lib.
    """
    check_installed()
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:{PROJECT}:{run}"))
    bom.metadata.timestamp = datetime.fromisoformat(time)
    bom.metadata.component = Component(name=name, type=ComponentType.APPLICATION, bom_ref=f"run:{run}")
    libraries = {lib.name: lib for lib in _packages(ran.get("packages") or {})}
    project = libraries[PROJECT]
    parts = [_model(model) for model in models]
    for component in (*libraries.values(), *parts):
        bom.components.add(component)
    bom.register_dependency(bom.metadata.component, [project, *parts])
    for library in libraries.values():
        below = (libraries[n] for n in required(library.name) if n in libraries)
        bom.register_dependency(library, list(below))
    output = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return (output.output_as_string(indent=2) + "\n").encode()


@cache  # what is installed does not change while a bundle is made, and metadata are slow to read
def required(package: str) -> tuple[str, ...]:
    """Return the installed packages that an installed package requires here, without extras, sorted."""
    try:
        stated = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return ()
    names = set()
    for line in stated:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # an old package's own spelling; it is no requirement of ours
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.add(canonicalize_name(requirement.name))
    return tuple(sorted(name for name in names if _version(name) is not None))


def _packages(ran: Mapping[str, str]) -> Iterable[Component]:
    """Yield the project and, transitively, what it requires, sorted by name."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression
    from packageurl import PackageURL

    known, ahead = {PROJECT}, [PROJECT]
    while ahead:
        fresh = [n for n in required(ahead.pop()) if n not in known]
        known |= set(fresh)
        ahead += fresh
    logged: dict[str, str] = {canonicalize_name(name): version for name, version in ran.items()}
    for name in sorted(known):
        version = logged[name] if name in logged else metadata.version(name)
        source = "the run's audit log" if name in logged else "the installation that bundled"
        (licence,) = metadata.metadata(name).get_all("License-Expression") or [None]
        yield Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pkg:{name}",
            licenses=[LicenseExpression(licence)] if licence else (),
            purl=PackageURL(type="pypi", name=name, version=version),
            properties=[Property(name=f"{PROJECT}:version-from", value=source)],
        )


def _model(model: Model) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    def digest(value: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=value)]

    files = [
        Component(name=n, type=ComponentType.FILE, bom_ref=f"model:{model.name}/{n}", hashes=digest(sha256))
        for n, sha256 in sorted(model.files.items())
    ]
    root = root_digest(model.files)
    return Component(
        name=model.name,
        version=root[:16],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{model.name}",
        description=ROLES[model.kind],
        components=files,
        properties=[Property(name=f"{PROJECT}:model-signing-digest", value=f"sha256:{root}")],
    )
