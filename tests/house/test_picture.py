"""picture: what a terminal was told becomes what is drawn, and the recording in the repository is of this demo."""

from __future__ import annotations

import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from eidproxy.commands import demo
from tests.lab.tools import ROOT
from tests.picture import Piece, draw, pieces, record

RECORDING = (ROOT / "deploy/demo.svg").read_text("utf-8")


def test_letters_stand_where_the_terminal_has_them() -> None:
    written = [(0.0, "\x1b[1mbold\x1b[0m a"), (1.5, "b\r\n밤 작업 x")]
    assert list(pieces(written)) == [
        Piece(0.0, 0, 0, "bold", True),
        Piece(0.0, 0, 4, " a", False),
        Piece(1.5, 0, 6, "b", False),
        Piece(1.5, 1, 0, "밤", False),
        Piece(1.5, 1, 2, " ", False),
        Piece(1.5, 1, 3, "작업", False),
        Piece(1.5, 1, 7, " x", False),
    ]


def test_a_piece_is_hidden_until_its_time_and_no_longer() -> None:
    svg = draw(list(pieces([(0.0, "now "), (2.5, "then <&>")])), "a & b")
    root = ElementTree.fromstring(svg)
    now, then = root.findall("{*}text")
    assert (now.text, now.find("{*}set")) == ("now", None)
    hidden = then.find("{*}set")
    assert then.text == "then <&>"
    assert hidden is not None
    assert (hidden.get("to"), hidden.get("dur")) == ("0", "2.50s")


def test_a_program_that_fails_is_no_recording() -> None:
    with pytest.raises(SystemExit):
        list(record([sys.executable, "-c", "raise SystemExit(3)"]))


def test_the_recording_is_of_this_demo() -> None:
    """Its scenes are those of the code: a change of the show wants `make picture`."""
    scenes = set(re.findall(r'self\._begin\(f?"(\d\. [^("]+?) ?[("]', inspect.getsource(demo)))
    assert len(scenes) == 4
    shown = "\n".join(ElementTree.fromstring(RECORDING).itertext())
    for scene in scenes:
        assert scene in shown
    assert "the model is back" in shown
