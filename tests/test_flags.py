"""flags: what `--help` says of each setting."""

import re
import subprocess
import sys

import pytest

from eidproxy.config import FIELDS, Settings
from eidproxy.flags import GROUPS, TEXTS
from tests.harness import ROOT


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
        "--router-url URL where the router is: http://127.0.0.1:4000 [required; LLM_ROUTER_URL]",
        "--gate-wait-timeout-seconds SECONDS the longest wait [300; EIDPROXY_GATE_WAIT_TIMEOUT_SECONDS]",
        "--router-ask-usage true|false ask the router for token counts, for the metrics [false; ",
        "--server-uds FILE a Unix socket to listen on, instead of host and port [none; EIDPROXY_SERVER_UDS]",
    ):
        assert line in text
    assert "api-key" not in text, "a secret has no flag"


def test_only_what_takes_settings_shows_them() -> None:
    assert all(" Router:" not in help_of(command) for command in ("token", "top", "demo", "version"))
    assert "Router:" in help_of("check")
