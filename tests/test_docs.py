"""The documents name what there is: a setting, a reason, a metric or a command that is not documented fails."""

import re

import pytest

from eidproxy.cli import cli
from eidproxy.config import FIELDS
from eidproxy.errors import RULES
from tests.harness import ROOT, Proxy
from tests.upstream import Router

README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "deploy" / "reference.md").read_text()


@pytest.mark.parametrize("path", [field.path for field in FIELDS])
def test_every_setting_is_in_the_readme(path: str) -> None:
    """By its path, or by its last word in the row of its section: `gate.capacity` · `max_waiting`."""
    section, _, name = path.rpartition(".")
    rows = [line for line in README.splitlines() if line.startswith(f"| `{section.split('.')[0]}.")]
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


def test_every_command_is_in_the_readme() -> None:
    for name in cli.commands:
        assert f"`eidproxy {name}" in README


def test_files_that_are_named_exist() -> None:
    for document in ("README.md", "deploy/README.md", "deploy/SECURITY.md", "eidproxy/DESIGN.md"):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"
        for target in re.findall(r"`((?:tests|eidproxy|deploy)/[\w./]+)`", text):
            assert (ROOT / target).exists(), f"{document}: {target}"
