"""A release: the version stands where it must, and the changelog keeps what was written before."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environments import ROOT
from tests.house.test_imports import PATHS, PURE
from tests.release.__main__ import REPEATS, cut
from tests.release.mutate import EXCUSED, excuse, place

FILES = ("pyproject.toml", "CHANGELOG.md", *REPEATS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a release writes to."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_version_is_written_where_it_stands(tree: Path) -> None:
    before = {name: (tree / name).read_text("utf-8") for name in FILES}
    cut(tree, "98.76.54", "2030-01-02")
    for name in ("pyproject.toml", *REPEATS):
        after = (tree / name).read_text("utf-8")
        changed = [line for line in after.splitlines() if line not in before[name].splitlines()]
        assert changed
        assert all("98.76.54" in line for line in changed)
        assert len(after.splitlines()) == len(before[name].splitlines())
    head, _, changes = before["CHANGELOG.md"].partition("## [Unreleased]\n")
    wanted = f"{head}## [Unreleased]\n\n## [98.76.54] - 2030-01-02\n{changes}"
    assert (tree / "CHANGELOG.md").read_text("utf-8") == wanted


@pytest.mark.parametrize("version", ["1", "v1.2.3", "1.2.3-rc1", ""])
def test_what_is_no_version_changes_nothing(tree: Path, version: str) -> None:
    with pytest.raises(SystemExit, match="no version"):
        cut(tree, version, "2030-01-02")
    assert (tree / "CHANGELOG.md").read_bytes() == (ROOT / "CHANGELOG.md").read_bytes()


def test_a_version_is_cut_once_and_not_without_changes(tree: Path) -> None:
    cut(tree, "98.76.54", "2030-01-02")
    with pytest.raises(SystemExit, match="no unreleased changes"):
        cut(tree, "98.76.55", "2030-01-02")
    changelog = tree / "CHANGELOG.md"
    changelog.write_text(changelog.read_text("utf-8").replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "utf-8")
    with pytest.raises(SystemExit, match=r"has 98\.76\.54 already"):
        cut(tree, "98.76.54", "2030-01-03")


def test_a_mutant_has_a_place_and_perhaps_an_excuse() -> None:
    assert place("eidproxy.relay.sse.xǁEventParserǁ_feed_plain__mutmut_4") == "sse:EventParser._feed_plain"
    assert place("eidproxy.errors.x_rule__mutmut_12") == "errors:rule"
    assert excuse("wedge:Passage.__init__", "self.left = False => self.left = None") is not None
    assert excuse("wedge:Passage.__init__", "self.left = False => self.left = True") is None


def functions(module: str) -> Iterator[str]:
    """The functions of a module as `place` names them."""
    for node in ast.parse(PATHS[module].read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            yield f"{module}:{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield from (f"{module}:{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef))


@pytest.mark.parametrize(("where", "what"), [(where, what) for where, what, _ in EXCUSED if where])
def test_an_excuse_names_what_there_is(where: str, what: str) -> None:
    """After a rename it would excuse nothing."""
    module = where.partition(":")[0]
    spots = [spot for each in PURE for spot in functions(each)]
    assert any(re.match(where, spot) for spot in spots), where
    source = PATHS[module].read_text("utf-8")
    assert all(name in source for name in re.findall(r"(?<![\\\w])_\w{3,}", what)), what
