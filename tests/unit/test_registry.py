"""Registries of kinds: names before loading, nearest names, entry points of others, nothing left behind."""

import sys

import pytest

from fedproxy_secure.config import kinds
from fedproxy_secure.config.kinds import COMPRESSIONS, FUSION_RULES, METHODS, PROTECTIONS
from fedproxy_secure.errors import ConfigError
from fedproxy_secure.protect.plaintext import Plaintext
from fedproxy_secure.runtime.registry import Registry, answers_of, plugged_in

GROUP = "fedproxy_secure.test_kinds"


@pytest.fixture
def registry() -> Registry:
    own = {"json": "json:loads", "broken": "json:no_such_thing"}
    return Registry(kind="reader", group=GROUP, own=own)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package whose metadata has these entry points."""

    def install(lines: str, module: str = "THING = 'theirs'\n") -> None:
        place = tmp_path / "somebody-1.0.dist-info"
        place.mkdir()
        (place / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
        (place / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
        (tmp_path / "somebody.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("somebody", None)

    return install


@pytest.mark.parametrize("name", ["PROTECTIONS", "FUSION_RULES", "METHODS", "COMPRESSIONS"])
def test_a_type_checker_refuses_what_a_registry_refuses(name):
    """That is, both know the same class of the registry's things."""
    base = getattr(kinds, name)._base.rpartition(":")[2]
    assert kinds.__annotations__[name] == f"Registry[{base}]"


def test_names_are_known_before_anything_is_loaded(registry):
    assert registry.names() == ("json", "broken")
    registry.check("broken")


def test_a_name_that_is_not_known_gets_the_nearest_one_and_its_setting(registry):
    with pytest.raises(ConfigError, match=r"^reader 'jsn': is not known; did you mean 'json'\?$"):
        registry.get("jsn")
    with pytest.raises(ConfigError, match=r"^read\.as=xyz: is not known; there are json, broken$"):
        registry.get("xyz", setting="read.as")


def test_another_package_adds_one_by_an_entry_point(registry, installed):
    installed("theirs = somebody:THING")
    assert registry.names() == ("json", "broken", "theirs")
    assert registry.get("theirs") == "theirs"


def test_an_entry_point_cannot_take_a_name_that_is_there(registry, installed):
    installed("json = somebody:THING")
    with pytest.raises(ConfigError, match="reader 'json': is there already; entry point somebody:THING"):
        registry.names()


def test_another_packages_module_that_cannot_be_loaded_is_one_line(registry, installed):
    installed("theirs = somebody:THING", "raise ZeroDivisionError('oh')\n")
    with pytest.raises(ConfigError, match=r"^reader 'theirs': somebody:THING: cannot be loaded: oh$"):
        registry.get("theirs")


THINGS = """
class Thing:
    title = "a thing"
    def __init__(self, name):
        self.name = name
RIGHT, OTHER, NAMELESS = Thing("theirs"), Thing("another"), Thing(None)
FOLDER = Thing("../theirs")
"""


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ("theirs = somebody:RIGHT [extra]", None),
        ("theirs = somebody:Thing", "is a class; must be an instance of somebody.Thing"),
        ("theirs = somebody", "is a module; must be an instance of somebody.Thing"),
        ("theirs = somebody:OTHER", "name='another'; must be 'theirs', as it is registered"),
        ("theirs = somebody:NAMELESS", "name=None; must be a text"),
        ("../theirs = somebody:FOLDER", "its name must be 1 to 64 letters, digits"),
    ],
)
def test_what_another_package_registers_must_be_an_object_of_the_kind_under_its_own_name(
    installed, point, line
):
    installed(point, THINGS)
    kinds = Registry(
        kind="thing", group=GROUP, own={}, base="somebody:Thing", texts=("name", "title"), named_by="name"
    )
    (name,) = kinds.names()
    if line is None:
        assert kinds.get(name).name == name
        return
    with pytest.raises(ConfigError) as refused:
        kinds.get(name)
    assert str(refused.value).startswith(f"thing '{name}': somebody")
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_script_cannot_register_a_class_either():
    with pytest.raises(ConfigError, match="protection 'mine': is a class; must be an instance of"):
        PROTECTIONS.add("mine", Plaintext)


def test_what_a_block_adds_is_gone_after_it(registry):
    with registry.added("mine", 1):
        assert registry.get("mine") == 1
        with pytest.raises(ConfigError, match="reader 'mine': is there already"):
            registry.add("mine", 2)
    assert "mine" not in registry.names()


def test_every_name_of_this_project_leads_to_an_object_of_that_name():
    for one in (PROTECTIONS, FUSION_RULES, METHODS, COMPRESSIONS):
        for name, thing in one.every().items():
            assert thing.name == name
            assert one is FUSION_RULES or thing.title


def test_the_functions_of_a_group_are_loaded_and_asked(installed):
    installed("a = somebody:double\nb = somebody:THING", "THING = str\ndouble = lambda value: 2 * value\n")
    assert [function(3) for function in plugged_in(GROUP)] == [6, "3"]
    assert answers_of(GROUP, 4) == [8, "4"]
    assert answers_of("nobody.has.these") == []


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("import nothing_of_the_kind", "cannot be loaded: No module named 'nothing_of_the_kind'"),
        ("mine = 3", "is of int; must be a function"),
        ("def mine(): return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_of_somebody_else_that_is_broken_is_named(installed, module, says):
    installed("mine = somebody:mine", module + "\n")
    with pytest.raises(ConfigError) as raised:
        answers_of(GROUP)
    assert str(raised.value) == f"entry point 'mine' of {GROUP}: somebody:mine: {says}"
