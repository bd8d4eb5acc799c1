"""The layout that docs/architecture.md promises: small modules, small folders, a small root."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedproxy_secure", "threat_models", "attacks")
MOST_MODULES, MOST_IN_THE_ROOT, MOST_LINES = 12, 6, 300
LISTED = re.compile(r"^ *(\w+)(/|\.py)? {2,}\S", re.MULTILINE)  # a line of a docstring's listing of modules
LONG = "Longer than 300 lines"  # how a module's docstring begins the sentence that says why


def modules() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(
    "folder", sorted({f.parent for f in modules()}), ids=lambda f: str(f.relative_to(ROOT))
)
def test_a_folder_holds_at_most_a_dozen_modules(folder: Path):
    held = [f.name for f in folder.glob("*.py") if f.name != "__init__.py"]
    assert len(held) <= MOST_MODULES, held


def test_the_root_of_the_package_holds_few_modules():
    assert len(list((ROOT / "fedproxy_secure").glob("*.py"))) <= MOST_IN_THE_ROOT


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_tells_type_checkers_that_it_is_typed(package: str):
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("file", ["Makefile", ".pre-commit-config.yaml"])
def test_the_type_checker_reads_packages_examples_and_tests(file: str):
    text = (ROOT / file).read_text(encoding="utf-8").replace("$(PACKAGES)", " ".join(PACKAGES))
    (read,) = re.findall(r"(?:-m |bin/)mypy (.*)", text)
    assert sorted(read.split()) == sorted((*PACKAGES, "examples", "tests"))


def test_a_module_is_short_or_its_docstring_says_why_not():
    for file in modules():
        text = file.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert len(text.splitlines()) <= MOST_LINES or LONG in docstring, file


def test_no_docstring_begins_with_of():
    """A reader must understand the first line alone."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in modules():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                docstring = ast.get_docstring(node) or ""
                assert not docstring.startswith(("Of ", "As given", "As shown")), (file, docstring)


def test_a_packages_docstring_that_lists_modules_lists_them_all():
    listings = 0
    for file in sorted((ROOT / "fedproxy_secure").rglob("__init__.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        there = {f.stem for f in file.parent.glob("*.py") if f != file}
        there |= {f"{f.parent.name}/" for f in file.parent.glob("*/__init__.py")}
        named = {name + ("/" if mark == "/" else "") for name, mark in LISTED.findall(docstring)}
        if len(named & there) > 1:
            listings += 1
            assert named == there, (file, named ^ there)
    assert listings > 5
