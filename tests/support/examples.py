"""Load a file of `examples/` as a module, as its reader would have it."""

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name: str) -> ModuleType:
    """The module in `examples/NAME.py`; it is not left in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(name: str) -> int:
    """How long `examples/NAME.py` is."""
    return len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines())
