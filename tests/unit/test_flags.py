"""flags: what `--help` says of each setting."""

import re
import subprocess
import sys

import pytest

from eidproxy.commands.flags import GROUPS, TEXTS
from eidproxy.config import FIELDS, Settings
from tests.lab.tools import ROOT


def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "eidproxy", command, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


@pytest.mark.parametrize("path", [field.path for field in FIELDS if not (field.secret or field.file_only)])
def test_every_setting_is_explained(path: str) -> None:
    """By a text of its own, not by its name."""
    assert len(TEXTS[path].split()) >= 3


def test_settings_stand_in_groups_with_default_and_unit() -> None:
    text = re.sub(r"\s+", " ", help_of("serve"))
    headings = [f" {heading}: " for heading in GROUPS.values()]
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert len(headings) == len(Settings.__struct_fields__)
    assert places[0] < text.index("--router-url URL") < places[1]
    assert text.index(" Options: ") < text.index("--workers") < places[0], "the command's own come first"
    for line in (
        "--router-url URL URL of the router, for example http://127.0.0.1:4000 [required]",
        "--gate-wait-timeout-seconds SECONDS timeout for waiting in the queue [300]",
        "--router-ask-usage true|false ask the router for token counts, for the metrics [false]",
        "--server-uds FILE Unix socket to listen on, instead of host and port [none]",
    ):
        assert line in text
    assert "api-key" not in text, "a secret has no flag"


def test_only_what_takes_settings_shows_them() -> None:
    for command in ("check", "completion", "demo", "schema", "service", "token", "top", "version"):
        lines = help_of(command).splitlines()
        assert not [line for line in lines if line.startswith("  --router-url")]
        assert len(lines) <= 30, command
    assert "eidproxy serve --help" in help_of("check")


def test_the_list_of_commands_says_each_in_a_whole_sentence() -> None:
    """In 80 columns none is cut."""
    command = [sys.executable, "-m", "eidproxy", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "..." not in text.partition("Commands:")[2]


def test_the_environment_has_the_name_of_the_flag() -> None:
    """As the help says, so that it need not stand at each of them; two have names of their own."""
    for field in FIELDS:
        if field.flag and field.env and field.path not in ("router.url", "stream.accelerator"):
            assert field.env == "EIDPROXY_" + field.flag.removeprefix("--").upper().replace("-", "_")
