"""The recording in README: `eidproxy demo --once` in a terminal of its own, as an SVG that plays it again.

python -m tests.picture [FILE]    # deploy/demo.svg

Nothing in it is drawn by hand: what the program wrote, and when. Who shows no animation shows the end of it.
"""

from __future__ import annotations

import os
import pty
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.lab.tools import ROOT

COLUMNS, ROWS = 80, 60
CELL, LINE, FONT = 8.4, 19, 14
PAD = 18
REST_SECONDS = 5.0
"""How long the end is shown before it begins anew."""

_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m|(\r?\n)|([^\x1b\r\n]+)")


class Piece(NamedTuple):
    """Letters of one width and one weight, where they stand, and when they were written."""

    seconds: float
    row: int
    column: int
    text: str
    bold: bool


def record(command: list[str]) -> Iterator[tuple[float, str]]:
    """What a program writes to a terminal, with the seconds since its first word."""
    child, leader = pty.fork()
    if child == 0:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm", "COLUMNS": str(COLUMNS)}
        os.execve(command[0], command, environment)
    began, rest = None, b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux's word for the end of a terminal
            data = b""
        if not data:
            break
        began = time.monotonic() if began is None else began
        rest += data
        text = rest.decode("utf-8", "ignore")
        rest = rest[len(text.encode()) :]
        yield time.monotonic() - began, text
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")


def cells(letter: str) -> int:
    """How wide a letter is."""
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def pieces(written: Iterable[tuple[float, str]]) -> Iterator[Piece]:
    """The pieces, row by row. The program only ever appends, so a row is done when it ends."""
    row = column = 0
    bold = False
    for seconds, text in written:
        for style, end, letters in _ESCAPE.findall(text):
            if end:
                row, column = row + 1, 0
            elif letters:
                for width, group in groupby(letters, cells):
                    run = "".join(group)
                    yield Piece(seconds, row, column, run, bold)
                    column += width * len(run)
            else:
                bold = style not in ("", "0")


def draw(shown: list[Piece], title: str) -> str:
    """The SVG. Each piece is visible; while the recording plays it is hidden until its time."""
    last = max(piece.seconds for piece in shown) + REST_SECONDS
    width = round(COLUMNS * CELL) + 2 * PAD
    height = (max(piece.row for piece in shown if piece.text.strip()) + 1) * LINE + 2 * PAD
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono','Noto Sans Mono CJK KR',monospace;"
        "white-space:pre;fill:#edebe5}.b{font-weight:700;fill:#74cdb9}</style>",
        f'<rect width="{width}" height="{height}" rx="12" fill="#171716">',
        f'<animate id="play" attributeName="opacity" values="1;1" begin="0s;play.end" dur="{last:.1f}s"/>',
        "</rect>",
    ]
    for piece in shown:
        if not piece.text.strip():
            continue
        indent = len(piece.text) - len(piece.text.lstrip(" "))
        x, y = PAD + (piece.column + indent) * CELL, PAD + piece.row * LINE + FONT
        weight = ' class="b"' if piece.bold else ""
        text = piece.text.strip(" ")
        is_narrow = len(text) > 1 and cells(text[0]) == 1
        hidden = f'<set attributeName="opacity" to="0" begin="play.begin" dur="{piece.seconds:.2f}s"/>'
        fixed = f' textLength="{len(text) * CELL:.1f}"' if is_narrow else ""
        lines.append(
            f'<text{weight} x="{x:.1f}" y="{y}"{fixed}>{escape(text)}{hidden if piece.seconds >= 0.01 else ""}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(target: Path) -> None:
    program = str(Path(sys.executable).with_name("eidproxy"))
    written = record([program, "demo", "--once"])
    target.write_text(draw(list(pieces(written)), "A recording of make demo"), "utf-8")
    print(f"{target}: {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "deploy" / "demo.svg")
