"""deploy/README.md, typed line by line by somebody who has not read it: the code blocks are the test.

A host with systemd is played in a mount namespace of its own, where /opt, /etc and /usr/local may be written and
nothing stays, and in a network namespace, where ports 4000 and 8790 are free. Two things stand in for what is not
here: a fake router at port 4000, and a `systemctl` that starts what the unit says, with the unit's credentials.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, fresh_copy
from tests.lab.tools import need, without

TYPED = "typed here"
SECTIONS = {
    "Installing on a host": TYPED,
    "A Mac mini, with the app on the same host": "a Mac; its curl is typed here",
    "Linux with systemd": TYPED,
    "Compose": "a Docker engine; its secrets by test_artefacts.py, the image's steps by test_image.py",
    "Kubernetes": "a cluster; the manifests by test_artefacts.py",
    "Three replicas, one gate": "a Docker engine or a cluster; the store's settings by test_artefacts.py",
    "Behind Caddy": "the chat's first block and the token are typed here, the edge by test_edges.py",
    "Behind nginx": "the edge by test_edges.py",
    "Prometheus and Grafana": "promtool by test_prometheus.py",
    "A model server that hangs": "the block for systemd is typed here, the script by test_watchdog.py",
}


def sections() -> dict[str, list[str]]:
    """The shell blocks of each section, by its title."""
    parts = re.split(r"^## (.+)$", (DEPLOY / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    texts = zip(parts[1::2], parts[2::2], strict=True)
    found = {title: re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for title, text in texts}
    return {title: blocks for title, blocks in found.items() if blocks}


def block(section: str, word: str) -> str:
    (found,) = [each for each in sections()[section] if word in each]
    return found


def test_every_section_is_typed_or_says_what_it_lacks() -> None:
    assert list(sections()) == list(SECTIONS)
    assert all("eidproxy" in each or "docker" in each or "curl" in each for each in sections()["Linux with systemd"])


SYSTEMCTL = r"""#!/bin/sh
# What systemd does with the units, as far as it can be done without it.
set -eu
stop() {
  [ -f /run/typed.pid ] || return 0
  kill "$(cat /run/typed.pid)"
  tail --pid="$(cat /run/typed.pid)" -f /dev/null
  rm /run/typed.pid
}
start() {
  unit=/etc/systemd/system/eidproxy.service
  credentials=$(mktemp -d)
  for file in /etc/eidproxy/credentials/*; do
    [ ! -e "$file" ] || cp "$file" "$credentials/eidproxy_$(basename "$file")"
  done
  CREDENTIALS_DIRECTORY=$credentials $(sed -n 's/^ExecStart=//p' $unit) 2>>/run/typed.log &
  echo $! > /run/typed.pid
  curl --silent --retry 60 --retry-connrefused --retry-delay 1 http://127.0.0.1:8790/healthz >/dev/null
}
case "$*" in
daemon-reload) systemd-analyze verify /etc/systemd/system/eidproxy*.service ;;
"enable --now eidproxy" | "restart eidproxy") stop; start ;;
"enable --now eidproxy-watchdog.timer") systemd-analyze verify /etc/systemd/system/eidproxy-watchdog.timer ;;
"disable --now eidproxy") stop ;;
*) echo "no such use: systemctl $*" >&2; exit 1 ;;
esac
"""

ROUTER = (
    "import threading; from eidproxy.testing import FakeRouter; "
    "FakeRouter(port=4000).__enter__(); threading.Event().wait()"
)
LAYERS = ("opt", "etc", "usr/local", "run")


class Host:
    """A machine to type at. Each script begins with what the last one left of the file system."""

    def __init__(self, place: Path) -> None:
        self.project = fresh_copy(place / "project")
        self.bin = place / "bin"
        self.bin.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("sudo", '#!/bin/sh\nexec "$@"\n')):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.layers = place / "layers"
        for name in LAYERS:
            for kind in ("upper", "scratch"):
                (self.layers / name.replace("/", "-") / kind).mkdir(parents=True)

    def type(self, script: str, *, network: bool, say: str = "") -> str:
        """Run a script as root at this host; without the network it has a loopback of its own."""
        unshare, _ip = need("unshare", "ip")
        mounts = [
            f"mount -t overlay o -o lowerdir=/{name},upperdir={layer}/upper,workdir={layer}/scratch /{name}"
            for name in LAYERS
            for layer in (self.layers / name.replace("/", "-"),)
        ]
        inner = script if network else f"ip link set lo up\n{script}"
        command = [unshare, "--mount", *([] if network else ["--net"]), "sh", "-euc"]
        environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"},
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin",
            "LANG": "C.UTF-8",
        }
        done = subprocess.run(
            [*command, "\n".join([*mounts, f"cd {self.project}", inner])],
            input=say,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if "overlay" in done.stderr and "mount:" in done.stderr:
            without(f"no overlay can be mounted here: {done.stderr[-200:]}")
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        return said


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which eidproxy was installed as the document says."""
    need("git", "unshare", "ip", "systemd-analyze", "curl", "openssl")
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    # The layers of an overlay may not lie on one: a folder in memory, mounted for the test.
    place = tmp_path_factory.mktemp("host")
    host = Host(place)
    host.type(block("Installing on a host", "python3 -m venv"), network=True)
    yield host
    shutil.rmtree(place, ignore_errors=True)


def with_router(*blocks: str, last: str = "") -> str:
    """The blocks while a router stands at port 4000; at the end everything is stopped."""
    return "\n".join(
        [
            "rm -f /run/typed.pid",  # of the script before: the file stays, the process does not
            f"/opt/eidproxy/bin/python -c '{ROUTER}' & router=$!",
            "trap 'kill $router; [ ! -f /run/typed.pid ] || kill $(cat /run/typed.pid)' EXIT",
            "until curl --silent http://127.0.0.1:4000/v1/models >/dev/null; do :; done",
            *blocks,
            last,
        ]
    )


SHOWS = block("A Mac mini, with the app on the same host", "curl --no-buffer")
STREAMED = '"delta":{"role":"assistant","content":"Hello"}'


@pytest.mark.timeout(400)
def test_by_hand_with_systemd(host: Host) -> None:
    """Service, a router elsewhere, the firewall, the chat, the watchdog: in the order of the document."""
    linux = sections()["Linux with systemd"]
    caddy = sections()["Behind Caddy"]
    token = [
        line for line in block("Behind Caddy", "eidproxy token").splitlines() if line[:2] == "ex" or "--qr" in line
    ]
    check = "/opt/eidproxy/bin/eidproxy check --config /etc/eidproxy/eidproxy.toml"
    watchdog = block("A model server that hangs", "eidproxy-watchdog.timer")
    typed = (*linux[:1], SHOWS, *linux[1:], SHOWS, caddy[0], *token, check, watchdog)
    said = host.type(with_router(*typed), network=False)
    assert said.count(STREAMED) == 2, said
    assert said.count("data: [DONE]") == 2
    assert "https://chat.example/chat#token=" in said
    assert said.index("chat surface: off") < said.index("chat surface: on"), "at first, and once it was set up"


@pytest.mark.timeout(400)
def test_by_one_command(host: Host) -> None:
    """`service install` asks, and does the same."""
    install = block("Installing on a host", "service install")
    said = host.type(
        with_router("rm -rf /etc/eidproxy /etc/systemd/system/eidproxy*", install, SHOWS), network=False, say="y\n"
    )
    assert "Continue?" in said
    assert STREAMED in said
