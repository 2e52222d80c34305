"""README, in both languages: each of its code blocks is typed as it stands, in a fresh copy, one after the other.

What a machine may lack is taken from elsewhere: packages come from where pip finds them, the router is the scripted
one, at a port of its own, and `make test` is not run inside itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eidproxy.config import load
from tests.deploy.files import fenced, fresh_copy
from tests.lab.client import ask
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.tools import ROOT, free_port, need, until, without

ENGLISH, KOREAN = ROOT / "README.md", ROOT / "deploy" / "README.ko.md"
LANGUAGES = ("sh", "python", "yaml", "toml")


def without_comments(block: str) -> str:
    return re.sub(r"[ \t]+# .*$", "", block, flags=re.MULTILINE)


def test_both_languages_have_the_same_blocks() -> None:
    for language in LANGUAGES:
        english, korean = ([without_comments(block) for block in fenced(path, language)] for path in (ENGLISH, KOREAN))
        assert english
        assert english == korean


def test_the_file_of_settings_is_taken(tmp_path: Path) -> None:
    (text,) = fenced(ENGLISH, "toml")
    file = tmp_path / "eidproxy.toml"
    file.write_text(text)
    settings = load(file, {}, {}).settings
    assert (settings.router.url, settings.models.deep.alias) == ("http://127.0.0.1:4000", "qwen-macbook")


def test_both_languages_have_the_same_tables() -> None:
    """Row by row the same code stands in the first column."""
    rows = [
        [
            re.findall(r"`[^`]+`", line.split("|")[1])
            for line in path.read_text("utf-8").splitlines()
            if line[:3] == "| `"
        ]
        for path in (ENGLISH, KOREAN)
    ]
    assert len(rows[0]) > 15
    assert rows[0] == rows[1]


def test_a_stranger_reads_it_in_two_minutes() -> None:
    """What stands before the first detail: at 230 words a minute, no more than two minutes to the first request."""
    text = ENGLISH.read_text("utf-8")
    story = text[: text.index("| header | meaning |")]
    words = re.sub(r"```.*?```", "", story, flags=re.DOTALL).split()
    assert len(words) < 600
    assert text.index("make demo") < 200, "the two commands come first"
    assert text.index("## Speed") > text.index("## Develop"), "speed comes last"


@pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=["English", "Korean"])
def test_each_word_is_explained_before_it_is_used(path: Path) -> None:
    """The first time it stands anywhere is in the picture's words, the first sentences or the table of words."""
    text = path.read_text("utf-8")
    table = text.index("CONTRACT.md")
    for word in ("router", "gate", "alias", "surface", "edge"):
        assert re.search(rf"^\| \*\*.*\b{word}\b", text[:table], re.MULTILINE), word


# --- Typed as it stands --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh copy of what git has, and of what it will have."""
    need("git", "make")
    place = fresh_copy(tmp_path_factory.mktemp("fresh") / "eidproxy")
    yield place
    shutil.rmtree(place)


def bare(**more: str) -> dict[str, str]:
    """The environment of somebody who has nothing of ours."""
    kept = ("PATH", "HOME", "TMPDIR", *(name for name in os.environ if name.startswith("PIP_")))
    return {**{name: os.environ[name] for name in kept if name in os.environ}, "LANG": "C.UTF-8", **more}


def shell(block: str, cwd: Path, until_line: str, patience: float = 240, **env: str) -> str:
    """Type a block; what it says until a line that holds `until_line`. Then Ctrl-C, if it still runs."""
    with subprocess.Popen(
        ["sh", "-euc", block],
        cwd=cwd,
        env=bare(PYTHONUNBUFFERED="1", **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if until_line in line:
                    break
            else:
                raise AssertionError("".join(said))
            yielded = "".join(said)
        finally:
            # A terminal sends it to all that the block started.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(patience)
    assert "Traceback" not in yielded
    return yielded


def block(word: str, language: str = "sh") -> str:
    (found,) = [each for each in fenced(ENGLISH, language) if word in each]
    return found


def test_every_block_is_typed_somewhere() -> None:
    """By its order in the document: what types it. A new block wants a new line here."""
    shells = [
        re.search(r"make demo|ln -s|eidproxy token|eidproxy serve|make bench|FULL=1", each)
        for each in fenced(ENGLISH, "sh")
    ]
    assert [found and found[0] for found in shells] == [
        "make demo",
        "ln -s",
        "eidproxy serve",
        "eidproxy token",
        "FULL=1",
    ]
    assert len(fenced(ENGLISH, "yaml")) == 2, "tests/routers/test_examples.py"
    assert len(fenced(ENGLISH, "python")) == 1


@pytest.mark.timeout(400)
def test_the_two_commands(copy: Path) -> None:
    """`make demo` from nothing, to the first word; `make test` as far as to be sure that it would begin."""
    demo, test = without_comments(block("make demo")).splitlines()
    said = shell(demo, copy, "1. daily, streamed")
    assert "Installing some twenty packages" in said, "a sign of life while packages download"
    assert "/demo" in said
    dry = subprocess.run(["make", "-n", *test.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pytest" in dry.stdout


@pytest.mark.timeout(400)
def test_use_it_and_the_chat(copy: Path, router: Router) -> None:
    """The block "Use it", the client's block, and the chat's, with one router and one environment."""
    router.script = stream(["Hel", "lo"])
    # The one change: both stand at free ports, since other tests run beside this one.
    port = str(free_port())
    use = block("check --live").replace("http://127.0.0.1:4000", router.url)
    assert use != block("check --live")
    said = shell(use, copy, '"started"', EIDPROXY_SERVER_PORT=port)
    assert re.search(r"^ok +daily: ", said, re.MULTILINE)

    python = block("OpenAI", "python").replace(":8790", f":{port}")
    serve = [str(copy / ".venv/bin/eidproxy"), "serve"]
    with subprocess.Popen(
        serve, env=bare(LLM_ROUTER_URL=router.url, EIDPROXY_SERVER_PORT=port), stderr=subprocess.DEVNULL
    ) as process:
        try:
            until(lambda: _answers(int(port)))
            client = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=True)
            assert client.stdout == "Hello"
        finally:
            process.terminate()

    chat = block("eidproxy token").replace(":8790", f":{port}")
    said = shell(chat, copy, '"started"', EIDPROXY_SERVER_PORT=port, LLM_ROUTER_URL=router.url)
    assert f"http://127.0.0.1:{port}/chat#token=" in said
    assert "Anyone who opens this link logs in as mom." in said
    assert "rules_missing" not in said


def _answers(port: int) -> bool:
    try:
        return ask(("127.0.0.1", port), "GET", "/healthz", timeout=5).status == 200
    except (OSError, EOFError):
        return False


def test_every_target_exists() -> None:
    """Those of "Develop", which take from minutes to hours, are only asked for their commands."""
    for line in without_comments(block("FULL=1")).splitlines():
        command = line if line.startswith("make ") else re.sub(r"^(\w+=\w+) ", r"env \1 ", line)
        words = command.replace("make", "make -n", 1).split()
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_mlx_links_give_a_folder_both_names(tmp_path: Path) -> None:
    """The first line of the block; the server itself is started by tests/routers/test_examples.py."""
    (tmp_path / "models/daily").mkdir(parents=True)
    line = block("mlx_lm.server").splitlines()[0]
    subprocess.run(["sh", "-euc", line], cwd=tmp_path, env=bare(HOME=str(tmp_path)), check=True)
    for alias in ("mac-mini-default", "qwen-macbook"):
        assert (tmp_path / alias).resolve() == tmp_path / "models/daily"


def test_yaml_is_yaml() -> None:
    try:
        import yaml
    except ImportError:
        without("missing: PyYAML")
    assert all(json.dumps(yaml.safe_load(each)) for each in fenced(KOREAN, "yaml"))
