"""What the tests of this directory share: the shipped files, and programs run to their end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.tools import without

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def run(
    *command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. The caller looks at the exit status."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        text=True,
        capture_output=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def passed(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed, and return all it said."""
    done = run(*command, cwd=cwd, env=env)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(map(str, command))} exited with {done.returncode}\n{said}"
    return said


def fresh_copy(place: Path) -> Path:
    """A copy of the project as git has it, and will have it, without its tests."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, place / name
        if source.is_file() and not name.startswith(("tests/", ".cache")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return place


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    try:
        import yaml
    except ImportError:
        without("missing: PyYAML")
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document is not None]


def fenced(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language in a Markdown file."""
    blocks: list[str] = []
    for block in path.read_text("utf-8").split("```")[1::2]:
        word, _, code = block.partition("\n")
        if word.strip() == language:
            blocks.append(code)
    return blocks
