"""The documents name what there is: a setting, a reason, a metric or a command that is not documented fails.

So does a document that names a function, a file, a decision or a dependency that is not there.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise

import pytest

import eidproxy
from eidproxy.cli import cli
from eidproxy.config import FIELDS
from eidproxy.errors import RULES
from eidproxy.relay.states import ENDS, Cause, State
from tests.house.test_imports import MODULES, PATHS, PURE
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.sources import names_in
from tests.lab.tools import ROOT

README = (ROOT / "README.md").read_text()
KOREAN = (ROOT / "deploy" / "README.ko.md").read_text()
SETTINGS = (ROOT / "deploy" / "settings.md").read_text()
REFERENCE = (ROOT / "deploy" / "reference.md").read_text()
DESIGN = (ROOT / "eidproxy" / "DESIGN.md").read_text()
GATE_DESIGN = (ROOT / "eidproxy" / "gate" / "DESIGN.md").read_text()
SECURITY = (ROOT / "deploy" / "SECURITY.md").read_text()
DOCUMENTS = (
    *("README.md", "deploy/README.ko.md", "deploy/README.md", "deploy/SECURITY.md", "deploy/CONTRACT.md"),
    *("eidproxy/DESIGN.md", "eidproxy/gate/DESIGN.md"),
    *("deploy/settings.md", "deploy/testing.md", "deploy/examples/README.md"),
    *(".github/CONTRIBUTING.md", ".github/SECURITY.md", ".github/pull_request_template.md"),
)


@pytest.mark.parametrize("path", [field.path for field in FIELDS])
def test_every_setting_is_in_its_table(path: str) -> None:
    """By its path, or by its last word in the row of its section: `gate.capacity` · `max_waiting`."""
    section, _, name = path.rpartition(".")
    rows = [line for line in SETTINGS.splitlines() if line.startswith(f"| `{section.split('.')[0]}.")]
    short = name.removesuffix("_timeout_seconds")
    assert any(f"`{path}`" in row or f"`{name}`" in row or f"`{short}_…`" in row for row in rows)


def test_every_reason_is_in_the_reference_as_it_is() -> None:
    for reason, rule in RULES.items():
        assert f"| `{reason}` | {rule.status} | " in REFERENCE
        assert rule.message in REFERENCE


def test_every_metric_is_in_the_reference_and_no_other(router: Router) -> None:
    with Proxy(router) as proxy:
        text = proxy.get("/metrics").body.decode()
    there = set(re.findall(r"^# TYPE (eidproxy_\w+)", text, re.MULTILINE))
    told = set(re.findall(r"^\| `(eidproxy_\w+)`", REFERENCE, re.MULTILINE))
    assert there == told


@pytest.mark.parametrize("text", [README, KOREAN], ids=["README.md", "README.ko.md"])
def test_every_command_is_in_the_readme(text: str) -> None:
    for name in cli.commands:
        assert f"`eidproxy {name}" in text


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_of_a_command_is_told_of(name: str) -> None:
    """In the README, or in the document of its command; but for those that are settings."""
    told = README + "".join((ROOT / "deploy" / document).read_text() for document in ("README.md", "check.md"))
    settings = {field.flag for field in FIELDS}
    options = {option for parameter in cli.commands[name].params for option in parameter.opts if option[0] == "-"}
    assert {option for option in options - settings - {"--workers"} if option not in told} == set()


def test_files_that_are_named_exist() -> None:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"
        for target in re.findall(r"`((?:tests|eidproxy|deploy)/[\w./]+)`", text):
            assert (ROOT / target).exists(), f"{document}: {target}"


# --- Names of the code ---------------------------------------------------------------------------------------------

_MODULES = {module: names_in(PATHS[module]) for module in MODULES}
_SETTINGS = {field.path for field in FIELDS}
_CLASSES = {name for names in _MODULES.values() for name in names if "." not in name and name[0].isupper()}


def missing_names(text: str) -> Iterator[str]:
    """Every `file.py`, `module.name`, `Class.name` and "the table `NAME` in `file.py`" of a text that is not there."""
    for name, path in re.findall(r"`(\w+)` in `(\w+\.py)`", text):
        if name not in _MODULES.get(path.removesuffix(".py"), ()):
            yield f"{path}: {name}"
    for words in re.findall(r"`([A-Za-z_]\w*(?:\.\w+)+)[^`]*`", text):
        first, _, rest = words.partition(".")
        if words in _SETTINGS:
            continue
        if rest == "py":
            found = first in _MODULES
        elif first in _MODULES and rest not in ("md", "lua", "sh"):
            found = rest in _MODULES[first]
        else:
            found = first not in _CLASSES or any(words in names for names in _MODULES.values())
        if not found:
            yield words


def test_names_of_the_code_exist() -> None:
    assert not [*missing_names(DESIGN), *missing_names(GATE_DESIGN), *missing_names(SECURITY)]


@pytest.mark.parametrize(
    "text",
    [
        "the table `_FIELDS` in `chat.py`",
        "`gone.py`",
        "`relay.Relay.gone`",
        "`Relay.gone(it)`",
        "`sanitize._UsualChunk`",
    ],
)
def test_control_a_name_that_is_gone_is_found(text: str) -> None:
    assert list(missing_names(text))


def unexplained(text: str) -> Iterator[str]:
    """The numbers of a module that have a name and no word of why: a docstring below, or a comment at their line.

    Numbers one under the other may share what stands below the last.
    """
    body, lines = ast.parse(text).body, text.splitlines()
    for node, after in pairwise([*body, None]):
        if isinstance(node, ast.Assign) and _is_number(node.value):
            shared = isinstance(after, ast.Assign) and _is_number(after.value) and after.lineno == node.lineno + 1
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not (told or shared or "#" in lines[node.lineno - 1]):
                yield lines[node.lineno - 1]


def _is_number(value: ast.expr) -> bool:
    """Whether it is a number, or put together of numbers and of names for them."""
    parts = (ast.Constant, ast.BinOp, ast.Name, ast.operator, ast.Load)
    numbers = [type(each.value) in (int, float) for each in ast.walk(value) if isinstance(each, ast.Constant)]
    return any(numbers) and all(numbers) and all(isinstance(each, parts) for each in ast.walk(value))


@pytest.mark.parametrize("module", MODULES)
def test_a_number_with_a_name_says_why(module: str) -> None:
    assert [*unexplained(PATHS[module].read_text("utf-8"))] == []


@pytest.mark.parametrize("text", ["_A = 48\n", "_A = 64 * 1024\nb = _A\n", "_A = 1\n\n_B = 2\n'''Why.'''\n"])
def test_control_a_number_without_a_word_is_found(text: str) -> None:
    assert [*unexplained(text)] == [text.splitlines()[0]]


def test_the_map_names_every_module() -> None:
    """In `eidproxy/__init__.py`, and the pure ones a second time."""
    text, _, pure = (eidproxy.__doc__ or "").partition("Pure (")
    assert set(MODULES) - {"__init__", "__main__"} <= set(re.findall(r"\w+", text))
    named = pure.partition("):")[2].partition(".")[0]
    assert set(re.findall(r"\w+", named)) == set(PURE)


# --- The design ----------------------------------------------------------------------------------------------------


def test_decisions_stand_in_order() -> None:
    """In two files, under numbers that go through both."""
    numbers: set[int] = set()
    for text in (DESIGN, GATE_DESIGN):
        found = [int(number) for number in re.findall(r"^### (\d+)\. ", text, re.MULTILINE)]
        assert found == sorted(set(found) - numbers)
        numbers |= set(found)
    named = re.findall(r"decision (\d+)|\((\d\d?)\)|\bby (\d\d)\b", DESIGN + GATE_DESIGN)
    assert len(named) > 10
    assert {int("".join(each)) for each in named} <= numbers


def ends_table() -> str:
    """What ends a request in each state, from the table of the code. States with the same column share it."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for state in State:
        if state in ENDS:
            cells = tuple(_cell(ENDS[state].get(cause)) for cause in Cause)
            columns.setdefault(cells, []).append(state.name)
    lines = [["cause", *(", ".join(names) for names in columns.values())], ["---"] * (len(columns) + 1)]
    lines += [[f"`{cause.name}`", *(cells[at] for cells in columns)] for at, cause in enumerate(Cause)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(meaning: str | None) -> str:
    if meaning is None:
        return "-"
    return f"`{meaning}`" if meaning in RULES or meaning == "client_gone" else _MEANINGS[meaning]


_MEANINGS = {"given": "given", "status": "by the status", "whole": "whole"}


def test_the_table_of_ends_is_the_code_s() -> None:
    shown = DESIGN.partition("<!-- from ENDS")[2].partition("-->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == ends_table(), f"between the marks of DESIGN.md must stand:\n{ends_table()}"


def test_every_state_is_explained() -> None:
    text = DESIGN.partition("The states of a request:")[2].partition("<!--")[0]
    assert re.findall(r"\b[A-Z]{5,}\b", text) == [state.name for state in State]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["redis"], *extras["testing"]]
    table = DESIGN.partition("## Dependencies")[2]
    reasons = re.findall(r"^\| ([\w-]+)(?: \(extra\))? \| \w", table, re.MULTILINE)
    assert sorted(reasons) == sorted(["package", *(re.split(r"[>=;\[ ]", name)[0] for name in needed)])


def test_every_row_of_security_names_code_and_a_test() -> None:
    table = SECURITY.partition("| promise |")[2].partition("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 10
    for promise, code, tests in rows:
        assert re.search(r"`[\w/]+\.(py|js)", code), promise
        assert re.search(r"`tests/\w+", tests), promise
