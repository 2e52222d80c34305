"""Environments beside the one of the tests: what a real client, a router or a release needs, from a lock of its own.

python -m tests.environments            # make those that are missing or old, in .cache/environments
python -m tests.environments clients    # only this one

A test that asks for one which was not made is skipped on a user's machine, and fails under CI=true.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.tools import without

ROOT = Path(__file__).parent.parent
PLACE = ROOT / ".cache" / "environments"

# Two for Python, since no version of openai suits all clients. Node comes from the first, so that every machine has the
# same one; `node` stands behind it for that reason.
LOCKS = {
    "clients": ROOT / "tests/clients/requirements.lock",
    "clients-openai2": ROOT / "tests/clients/requirements-openai2.lock",
    "clients-node": ROOT / "tests/clients/package-lock.json",
    "routers": ROOT / "tests/routers/requirements.lock",
    "release": ROOT / "tests/release/requirements.lock",
}


def is_made(name: str) -> bool:
    """Whether an environment is there and as its lock says."""
    return _stamp(name).exists() and _stamp(name).read_text() == _wanted(name)


def environment(name: str) -> Path:
    """The folder of an environment; the test is given up when it is not made."""
    if is_made(name):
        return PLACE / name
    without(f"the environment {name!r} is not there; make it with: python -m tests.environments {name}")
    raise AssertionError


def program(name: str, word: str) -> Path:
    """A program of an environment."""
    return environment(name) / "bin" / word


def make(name: str) -> None:
    """Make an environment anew, unless it is as its lock says."""
    if is_made(name):
        return
    began = time.monotonic()
    place, lock = PLACE / name, LOCKS[name]
    shutil.rmtree(place, ignore_errors=True)
    if lock.suffix == ".json":
        place.mkdir(parents=True)
        for file in (lock, lock.with_name("package.json")):
            shutil.copy(file, place)
        beside = {**os.environ, "PATH": f"{PLACE / 'clients' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=place, env=beside, check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        command = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--require-hashes", "-r", lock], check=True)
    _stamp(name).write_text(_wanted(name))
    print(f"{name}: made in {time.monotonic() - began:.0f} s", flush=True)


def _stamp(name: str) -> Path:
    return PLACE / name / "made-from"


def _wanted(name: str) -> str:
    lock = hashlib.sha256(LOCKS[name].read_bytes()).hexdigest()
    return f"{lock} {sys.version_info.major}.{sys.version_info.minor}\n"


if __name__ == "__main__":
    for each in sys.argv[1:] or LOCKS:
        make(each)
