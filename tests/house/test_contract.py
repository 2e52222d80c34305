"""The contract holds together: what cites it cites what is there, and each promise has code that keeps it and tests.

Each rule is a function from texts to faults, so that it can be tried on texts that have one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from eidproxy.config import FIELDS
from eidproxy.errors import RULES
from tests.lab.sources import names_in
from tests.lab.tools import ROOT

CONTRACT = (ROOT / "deploy" / "CONTRACT.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "deploy" / "reference.md").read_text(encoding="utf-8")

_OWN = {"deploy/CONTRACT.md", "tests/house/test_contract.py"}
_TEXT = {".py", ".md", ".js", ".mjs", ".html", ".css", ".lua", ".yaml", ".yml", ".toml", ".sh", ".conf", ".plist"}
_TREES = ("eidproxy", "tests", "deploy", ".github", ".ci")

_REFERENCE = re.compile(r"\(contract, ([^()]*\d[^()]*)\)", re.IGNORECASE)
_ITEM = re.compile(r"P?\d+|`[^`]+`")
_OTHER_SPELLING = re.compile(r"contract(?:'s)?,? sections? \d|contract, P?\d", re.IGNORECASE)
_BARE = re.compile(r"(?<![\w`.\[{/%-])(?:P(?:1[0-9]|[1-9])|C(?:1[0-9]|2[0-9]|[1-9]))(?![\w`.\]}/%-])")


class Contract(NamedTuple):
    """What can be cited."""

    sections: dict[str, str]
    """The text of each, by its number."""
    promises: list[str]
    rows: list[tuple[str, str, str]]
    """The table: promise, code, tests."""


def read_contract(text: str) -> Contract:
    parts = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| (P\d+) \|(.*)\|(.*)\|$", text, re.MULTILINE)
    return Contract(
        dict(zip(parts[1::2], parts[2::2], strict=True)),
        re.findall(r"^\*\*(P\d+) ", text, re.MULTILINE),
        rows,
    )


def texts() -> dict[str, str]:
    """Every text of the repository that may cite the contract, by its path."""
    paths = [path for tree in _TREES for path in (ROOT / tree).rglob("*") if path.suffix in _TEXT]
    paths += [ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "Caddyfile", "Dockerfile")]
    names = {str(path.relative_to(ROOT)): path for path in paths}
    skipped = re.compile(r"/(vendor|node_modules|corpus|__pycache__)/")
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in names.items()
        if name not in _OWN and not skipped.search(name)
    }


def one_line(text: str) -> str:
    """A text with no line ends, so that a reference that goes over one is found."""
    return re.sub(r"\s*\n\s*(?:(?:#|//|--|\*) )?", " ", text)


def cited(text: str) -> Iterator[str]:
    """What a text cites: sections, promises, and names that stand in the section before them."""
    for items in _REFERENCE.findall(one_line(text)):
        section = ""
        for item in re.split(r", | and | to ", items):
            section = item if item.isdigit() else section
            yield f"{section} {item}" if item.startswith("`") else item


def wrong_references(contract: Contract, name: str, text: str) -> Iterator[str]:
    """Every reference of a text that leads nowhere, or that is spelled so that nobody can look it up."""
    for item in cited(text):
        section, _, word = item.partition(" ")
        known = section in contract.sections or section in contract.promises
        if not known or not _ITEM.fullmatch(word or section) or word not in contract.sections.get(section, ""):
            yield f"{name}: (contract, {item}) leads nowhere"
    rest = _REFERENCE.sub("", one_line(text))
    yield from (f"{name}: {found!r}: write (contract, n)" for found in _OTHER_SPELLING.findall(rest))
    if name.endswith((".py", ".md")):
        yield from (f"{name}: {found!r}: write (contract, {found})" for found in _BARE.findall(rest))


def wrong_rows(contract: Contract, sources: Mapping[str, str]) -> Iterator[str]:
    """Every promise without code or without a test, and every name in the table that is not there."""
    numbers = [promise for promise, _, _ in contract.rows]
    if numbers != contract.promises:
        yield f"the table has {numbers}, the text has {contract.promises}"
    for promise, code, tests in contract.rows:
        for kind, cell in (("eidproxy/", code), ("tests/", tests)):
            places = re.findall(r"`([\w/]+\.py): ([\w.]+)`", cell)
            if not places or len(places) != cell.count("`") / 2:
                yield f"{promise}: nothing, or more than names, in {cell!r}"
            for path, name in places:
                is_test = name.rpartition(".")[2].startswith("test_")
                if path not in sources or name not in names_in(ROOT / path):
                    yield f"{promise}: {path} has no {name}"
                elif not path.startswith(kind) or is_test is not (kind == "tests/"):
                    yield f"{promise}: {path}: {name} stands in the wrong column"


def wrong_heads(contract: Contract, sources: Mapping[str, str]) -> Iterator[str]:
    """Every promise that none of its tests claims to judge, and every file of tests that claims another one."""
    for promise, _, tests in contract.rows:
        named = set(re.findall(r"`([\w/]+\.py): ", tests))
        saying = {
            name for name, text in sources.items() if re.search(r"(^|/)test_\w+\.py$", name) and promise in cited(text)
        }
        if not saying & named:
            yield f"{promise}: none of {sorted(named)} says (contract, {promise})"
        yield from (f"{promise}: {name} says that it judges it, the table does not" for name in sorted(saying - named))


HERE = read_contract(CONTRACT)
TEXTS = texts()


def test_there_are_nine_sections_and_eleven_promises() -> None:
    assert list(HERE.sections) == [str(number) for number in range(1, 10)]
    assert HERE.promises == [f"P{number}" for number in range(1, 12)]


def test_every_reference_leads_somewhere() -> None:
    assert not [fault for name, text in TEXTS.items() for fault in wrong_references(HERE, name, text)]
    assert sum(len(list(cited(text))) for text in TEXTS.values()) > 40  # the search finds what there is


def test_the_contract_s_own_references_lead_somewhere() -> None:
    found = re.findall(r"section (\d+)", CONTRACT)
    assert found
    assert set(found) <= set(HERE.sections)


@pytest.mark.parametrize(
    "text",
    [
        '"""The end (contract, 10)."""',
        '"""The end (contract, P12)."""',
        '"""The end (contract, 4, P6 and P0)."""',
        "# Over a line (contract,\n    # 11): it is found.",
        '"""Its choice (contract, 6, `gate.no_such_setting`)."""',
        '"""In some way (contract, 4 somewhere)."""',
        '"""The order of the contract\'s section 9."""',
        '"""The wall clock (P7)."""',
        '"""The soak (C23) in seconds."""',
    ],
)
def test_control_a_planted_reference_is_found(text: str) -> None:
    assert list(wrong_references(HERE, "eidproxy/planted.py", text))


@pytest.mark.parametrize(
    "text",
    [
        "(contract, 4)",
        "(contract, P6 and 2 to 5)",
        "(contract, 6, `gate.after_leave`)",
        "p99 of a contract, and a model of 4 bits; C0 and P.",
    ],
)
def test_control_a_good_reference_is_none(text: str) -> None:
    assert not list(wrong_references(HERE, "eidproxy/planted.py", text))


def test_each_promise_has_code_and_tests_that_exist() -> None:
    assert not list(wrong_rows(HERE, TEXTS))


def test_each_promise_is_claimed_by_its_tests_and_by_no_others() -> None:
    assert not list(wrong_heads(HERE, TEXTS))


_ROW = next(row for row in HERE.rows if row[0] == "P8")


@pytest.mark.parametrize(
    "row",
    [
        ("P8", _ROW[1], " "),
        ("P8", " ", _ROW[2]),
        ("P8", _ROW[1], " `tests/promises/test_gate_outside.py: test_that_is_gone` "),
        ("P8", _ROW[1], " `tests/test_that_is_gone.py: test_aging` "),
        ("P8", _ROW[1], " `tests/promises/test_gate_outside.py: Line` "),
        ("P8", " `eidproxy/relay/relay.py: Relay.that_is_gone` ", _ROW[2]),
        ("P8", _ROW[2], _ROW[1]),
        ("P12", _ROW[1], _ROW[2]),
    ],
)
def test_control_a_planted_row_is_found(row: tuple[str, str, str]) -> None:
    rows = [row if each is _ROW else each for each in HERE.rows]
    assert list(wrong_rows(HERE._replace(rows=rows), TEXTS))


def test_control_a_promise_that_no_test_claims_is_found() -> None:
    sources = {name: text for name, text in TEXTS.items() if name != "tests/promises/test_departures.py"}
    for name in ("tests/promises/test_injection.py", "tests/promises/test_slow_connects.py"):
        sources[name] = sources[name].replace("(contract, P6)", "")
    assert list(wrong_heads(HERE, sources))


def test_control_a_test_that_claims_too_much_is_found() -> None:
    planted = {**TEXTS, "tests/test_planted.py": '"""A test of the clock (contract, P7)."""'}
    assert list(wrong_heads(HERE, planted))


# --- The contract's tables and the code's --------------------------------------------------------------------------


def test_the_reasons_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (.+?) \| (\d{3}) \|", HERE.sections["5"], re.MULTILINE)
    wrong = [
        reason
        for reason, rule in RULES.items()
        if not any(f"`{reason}`" in row and int(status) == rule.status for row, status in rows)
    ]
    assert not wrong


@pytest.mark.parametrize("path", [field.path for field in FIELDS])
def test_every_setting_is_there(path: str) -> None:
    """By its path, or by its last word in a row of its section."""
    section, _, name = path.rpartition(".")
    rows = re.findall(r"^\| .*", HERE.sections["9" if section == "chat" else "7"], re.MULTILINE)
    spelled = (f"`{path}`", f"`[{path}]`")
    in_its_row = [row for row in rows if row.startswith(f"| `{section}.") and f"`{name}`" in row]
    is_likewise = section == "models.deep" and any(
        f"`models.daily.{name}`" in row and "likewise" in row for row in rows
    )
    assert in_its_row or is_likewise or any(word in row for row in rows for word in spelled)


def test_every_metric_is_there() -> None:
    table = HERE.sections["8"].partition("| name | type |")[2].partition("\n\n")[0]
    named = {f"eidproxy_{name}" for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(named) > 30
    assert named <= set(re.findall(r"^\| `(eidproxy_\w+)`", REFERENCE, re.MULTILINE))
