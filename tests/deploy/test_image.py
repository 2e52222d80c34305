"""The steps of the Dockerfile, executed: no Docker engine is needed to see that a step is missing.

Each stage is a directory. COPY takes from the build context that .dockerignore leaves, RUN runs with the absolute
paths of the image replaced, and the last stage starts what ENTRYPOINT, CMD and HEALTHCHECK say.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy.files import ROOT, run
from tests.lab.client import CHAT, ask, chat
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import free_port, need, until

USER = 65532


class Instruction(NamedTuple):
    """One line of a Dockerfile, continuation lines joined."""

    word: str
    rest: str


def instructions() -> list[Instruction]:
    """The Dockerfile, comments left out."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if line[:1] != "#")
    joined = re.sub(r"\\\n\s*", " ", text)
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the project into the build; the last pattern that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        exclude = not pattern.startswith("!")
        pattern = pattern.removeprefix("!")
        names = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        plain = pattern.removeprefix("**/")
        candidates = [part for name in names for part in ([name, Path(name).name] if plain != pattern else [name])]
        # In Docker's patterns a star stops at a slash.
        if any(fnmatch.fnmatchcase(name, plain) and name.count("/") <= plain.count("/") for name in candidates):
            sent = not exclude
    return sent


class Image:
    """The stages of the Dockerfile as directories below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = root / "context"
        self.prefix = root / "image"
        self.workdir = self.prefix
        for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0"):
            if name and is_sent(name) and (ROOT / name).is_file():
                target = self.context / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)

    def inside(self, text: str) -> str:
        """The text with the image's absolute paths moved below the prefix."""
        return re.sub(r"(?<![\w/.])/(opt|src)\b", lambda match: f"{self.prefix}/{match[1]}", text)

    def build(self, steps: Sequence[Instruction]) -> None:
        """Play the first stage."""
        stage = 0
        for word, rest in steps:
            if word == "FROM":
                stage += 1
            elif stage == 1 and word == "WORKDIR":
                self.workdir = Path(self.inside(rest))
                self.workdir.mkdir(parents=True)
            elif stage == 1 and word == "COPY":
                *sources, target = shlex.split(rest)
                for source in sources:
                    self.copy(self.context / source, self.workdir / target, target.endswith("/"))
            elif stage == 1 and word == "RUN":
                self.execute(self.inside(rest))

    def copy(self, source: Path, target: Path, into: bool) -> None:
        """COPY: a directory's content, or a file."""
        assert source.exists(), f"{source.relative_to(self.context)} is not in the build context"
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True) if into else target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    def execute(self, command: str) -> None:
        """RUN, with the interpreter of the tests where the image has its own."""
        tools = self.root / "bin"
        tools.mkdir(exist_ok=True)
        if not (tools / "python").exists():
            # The base's python, not the virtual environment's: the image has no other packages either.
            (tools / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
        # Where packages come from is this machine's affair: pip's own settings stay.
        kept = {
            name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in ("HOME", "LANG")
        }
        done = subprocess.run(
            ["/bin/sh", "-ec", command],
            cwd=self.workdir,
            env={**kept, "PATH": f"{tools}:/usr/bin:/bin"},
            text=True,
            capture_output=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    def final(self, word: str) -> str:
        """The rest of an instruction that stands once in the last stage."""
        text = [index for index, line in enumerate(instructions()) if line.word == "FROM"]
        (found,) = [line.rest for line in instructions()[text[-1] :] if line.word == word]
        return found

    def command(self, word: str) -> list[str]:
        """ENTRYPOINT, CMD or the command of HEALTHCHECK, in exec form, with paths of this machine."""
        rest = self.final(word)
        if word == "HEALTHCHECK":
            rest = rest[rest.index("CMD ") + len("CMD ") :]
        words = json.loads(rest)
        assert isinstance(words, list)
        return [self.inside(item) for item in words]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # Another user than this one will read it, so it is not in a folder of pytest, which is closed by each run.
    with tempfile.TemporaryDirectory(prefix="eidproxy-image-") as folder:
        built = Image(Path(folder))
        built.root.chmod(0o755)
        built.build(instructions())
        yield built


def test_the_context_holds_only_what_is_copied() -> None:
    names = run("git", "ls-files", "-z").stdout.split("\0")
    sent = {name for name in names if name and is_sent(name)}
    wanted = re.compile(r"eidproxy/.+|requirements\.lock|pyproject\.toml|README\.md|LICENSE")
    assert "pyproject.toml" in sent
    assert "eidproxy/__init__.py" in sent
    assert [name for name in sent if not wanted.fullmatch(name)] == []
    assert not is_sent("deploy/secrets/server_api_key")
    assert not is_sent(".git/config")
    assert not is_sent("eidproxy/__pycache__/gate.cpython-313.pyc")


def test_the_lock_has_hashes_and_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    pinned = re.findall(r"^[A-Za-z0-9][\w.\[\]-]*==\S+", text, re.MULTILINE)
    assert pinned
    assert len(re.findall(r"^[A-Za-z0-9].*\\\n\s+--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(pinned)
    assert "://" not in text
    assert not re.search(r"^\s*-(i|-index-url|-extra-index-url|f|-find-links)\b", text, re.MULTILINE)


@pytest.mark.timeout(300)
def test_installed_program_serves_confined_and_drains(image: Image, router: Router, tmp_path: Path) -> None:
    """As in the container: a numeric user, no capability, nothing writable, no shell, and SIGTERM ends it with 0."""
    assert image.final("USER") == f"{USER}:{USER}"
    assert image.final("STOPSIGNAL") == "SIGTERM"
    port = free_port()
    env = dict(word.split("=", 1) for word in shlex.split(image.final("ENV")))
    env |= {"LLM_ROUTER_URL": router.url, "EIDPROXY_SERVER_PORT": str(port)}
    command = [*_confinement(tmp_path), *image.command("ENTRYPOINT"), *image.command("CMD")]
    router.script = stream(["Hello", " world"])
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            check = image.command("HEALTHCHECK")
            until(lambda: run(*check, env=env).returncode == 0 or process.poll() is not None, 60, "healthy")
            assert process.poll() is None, process.communicate()[0]
            _is_confined(process.pid)
            answer = ask(("127.0.0.1", port), "POST", CHAT, chat("daily"))
            assert answer.told().text == "Hello world"
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert run(*check, env=env).returncode == 1, "the check must say no once nobody answers"


def test_a_step_that_is_missing_is_noticed(tmp_path: Path) -> None:
    """The control: without the step that brings the lock, the installation fails."""
    image = Image(tmp_path)
    steps = instructions()
    shortened = [step for step in steps if not (step.word == "COPY" and "requirements.lock" in step.rest)]
    assert len(shortened) == len(steps) - 1
    with pytest.raises(AssertionError, match="requirements"):
        image.build(shortened)


def test_installed_environment_has_nothing_to_build_with(image: Image) -> None:
    python = image.prefix / "opt/eidproxy/bin/python"
    said = run(
        python, "-Ic", "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    )
    names = set(said.stdout.split())
    assert "eidproxy" in names
    assert not names & {"pip", "setuptools", "wheel", "packaging", "pytest"}
    # And nothing that is left misses what went.
    assert "No broken requirements" in run(image.root / "bin/python", "-m", "pip", "--python", python, "check").stdout
    pages = run(python, "-Ic", "import eidproxy, pathlib; print(*pathlib.Path(eidproxy.__file__).parent.rglob('*'))")
    installed = {str(Path(name).relative_to(image.prefix)).split("eidproxy/", 2)[-1] for name in pages.stdout.split()}
    sources = {name.removeprefix("eidproxy/") for name in run("git", "ls-files", "eidproxy").stdout.split()}
    assert sources - installed == set(), "a file of the package that the wheel leaves out"


def _is_confined(pid: int) -> None:
    """The process is what the container would make of it, as the kernel says."""
    if os.geteuid() != 0:
        return
    said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert said["Uid"].split() == said["Gid"].split() == [str(USER)] * 4
    assert said["NoNewPrivs"] == "1"
    assert {said[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}


def _confinement(empty: Path) -> list[str]:
    """What the container's run time would do, when this machine lets us: only root may.

    In mounts of its own everything is read-only, then the user and the capabilities are given up. An interpreter in a
    directory that only root may enter is bound where others see it, too; `empty` is where it is held meanwhile.
    """
    if os.geteuid() != 0:
        return []
    unshare, setpriv = need("unshare", "setpriv")
    prefix = Path(sys.base_prefix)
    closed = [parent for parent in reversed(prefix.parents) if not parent.stat().st_mode & 0o001]
    script = """
        closed=$1 prefix=$2 empty=$3; shift 3
        if [ -n "$closed" ]; then
            mount --bind "$prefix" "$empty"
            mount -t tmpfs -o mode=755 tmpfs "$closed"
            mkdir -p "$prefix"
            mount --bind "$empty" "$prefix"
        fi
        while read -r _ point _; do mount -o remount,bind,ro "$point" 2>/dev/null || :; done < /proc/mounts
        if touch /tmp/written 2>/dev/null; then exit 70; fi
        exec "$@"
    """
    give_up = [setpriv, f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    places = [str(closed[0]) if closed else "", str(prefix), str(empty)]
    return [unshare, "--mount", "sh", "-euc", script, "sh", *places, *give_up, "--inh-caps=-all", "--"]
