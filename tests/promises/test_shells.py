"""completion: Tab, pressed in a real shell in a terminal, after the line that the help tells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.lab.tools import ROOT, need, until

LINES = {
    "bash": ("bash --norc --noprofile", 'eval "$(eidproxy completion bash)"'),
    "zsh": ("zsh -f", 'autoload -Uz compinit; compinit -u -d zcompdump; eval "$(eidproxy completion zsh)"'),
    "fish": ("fish --no-config", "eidproxy completion fish | source"),
}


def help_text() -> str:
    command = [sys.executable, "-m", "eidproxy", "completion", "--help"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize("shell", LINES)
def test_tab_completes(shell: str, tmp_path: Path) -> None:
    program, line = LINES[shell]
    tmux, _ = need("tmux", shell)
    assert line.rpartition("; ")[2] in help_text(), "what is typed here is what the help says"
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "eidproxy").write_text(f'#!/bin/sh\nexec {sys.executable} -m eidproxy "$@"\n')
    (folder / "eidproxy").chmod(0o755)
    socket = f"eidproxy-{uuid.uuid4().hex[:8]}"
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
    }

    def say(*words: str) -> str:
        command = [tmux, "-L", socket, "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    def screen() -> str:
        return say("capture-pane", "-p", "-t", "x")

    say("new-session", "-d", "-s", "x", "-x", "100", "-y", "30", "-c", str(tmp_path), program)
    try:
        say("send-keys", "-t", "x", f"{line}; echo rea''dy", "Enter")
        until(lambda: re.search(r"^ready", screen(), re.MULTILINE), 30, "the shell is ready")
        say("send-keys", "-t", "x", "eidproxy comple", "Tab")
        until(lambda: "eidproxy completion" in screen().rpartition("ready")[2], 30, "the command is completed")
        say("send-keys", "-t", "x", "zs", "Tab")
        until(lambda: "eidproxy completion zsh" in screen(), 30, "its argument is completed")
    finally:
        say("kill-server")
