"""Build the wheel and check what is in it: `python -m tests.support.wheel_contents`.

The wheel must hold every module and data file of the three packages and the shipped configs, and
nothing else: no tests, no caches.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedproxy_secure", "threat_models", "attacks")
DATA = (
    *(f"{package}/py.typed" for package in PACKAGES),  # else a type checker takes a package's names for Any
    "attacks/benchmark/benchmark.schema.json",
    "fedproxy_secure/bundle/findings.schema.json",
    "fedproxy_secure/configs/policies/release.yaml",
    "fedproxy_secure/configs/policies/research.yaml",
    "fedproxy_secure/configs/quickstart.yaml",
    "fedproxy_secure/monitor/templates/status.css",
    "fedproxy_secure/monitor/templates/status.html.j2",
    "fedproxy_secure/report/report.schema.json",
    "fedproxy_secure/report/html/templates/page.css",
    "fedproxy_secure/report/html/templates/page.html.j2",
    "fedproxy_secure/report/html/templates/page.js",
    "fedproxy_secure/world/demo_llm/model.safetensors",
    "fedproxy_secure/world/demo_llm/tokenizer.json",
)


def build(folder: Path) -> Path:
    """Build the wheel into `folder` with the build tools that are installed."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the wheel cannot be built:\n{done.stdout}{done.stderr}")
    return next(folder.glob("*.whl"))


def findings(names: set[str]) -> list[str]:
    """What is wrong with a wheel of these file names, one line each."""
    modules = {
        file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")
    }
    missing = sorted((modules | set(DATA)) - names)
    foreign = sorted(
        name
        for name in names
        if "__pycache__" in name or (name.split("/")[0] not in PACKAGES and ".dist-info/" not in name)
    )
    return [f"missing: {name}" for name in missing] + [f"should not be: {name}" for name in foreign]


def main() -> None:
    """Exit code 1 with one line per finding, or one line that says how many files are in it."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(build(Path(folder))) as wheel:
        names = set(wheel.namelist())
    wrong = findings(names)
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"wheel: {len(names)} files, all of them meant")


if __name__ == "__main__":
    main()
