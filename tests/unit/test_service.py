"""service: the plan for both systems, and installing for real into a folder that systemd's own programs then judge."""

from __future__ import annotations

import os
import plistlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eidproxy.commands import service
from eidproxy.commands.service import LAUNCHD, SYSTEMD, Folder, Remove, Run, ServiceError, Write
from tests.lab.router import Router
from tests.lab.tools import ROOT, need

PROGRAM = "/srv/eidproxy/bin/eidproxy"


@pytest.mark.parametrize("name", ["eidproxy.service", "com.eidproxy.plist", "newsyslog.eidproxy.conf"])
def test_the_units_are_those_of_deploy(name: str) -> None:
    assert (ROOT / "eidproxy/units" / name).read_bytes() == (ROOT / "deploy" / name).read_bytes()


def test_systemd_in_order() -> None:
    steps = service.install_steps(SYSTEMD, PROGRAM, "[router]\n")
    assert [type(step) for step in steps] == [Folder, Write, Folder, Write, Run, Run]
    (unit,) = [step for step in steps if isinstance(step, Write) and step.path == SYSTEMD.unit]
    assert f"ExecStart={PROGRAM} serve --config {SYSTEMD.settings}" in unit.text
    assert steps[2] == Folder("/etc/eidproxy/credentials", 0o700)
    assert [step.command for step in steps if isinstance(step, Run)] == [
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", "--now", "eidproxy"),
    ]
    kept = service.install_steps(SYSTEMD, PROGRAM, None)
    assert not [step for step in kept if isinstance(step, Write) and step.path == SYSTEMD.settings]


def test_launchd_makes_a_daemon_with_a_user_of_its_own() -> None:
    steps = service.install_steps(LAUNCHD, PROGRAM, "[router]\n")
    commands = [step.command for step in steps if isinstance(step, Run)]
    assert commands[0][0] == "sysadminctl"
    assert commands[-1] == ("launchctl", "bootstrap", "system", LAUNCHD.unit)
    (unit,) = [step for step in steps if isinstance(step, Write) and step.path == LAUNCHD.unit]
    plist = plistlib.loads(unit.text.encode())
    assert plist["ProgramArguments"][0] == PROGRAM
    assert plist["UserName"] == "_eidproxy"
    assert LAUNCHD.unit.startswith("/Library/LaunchDaemons/"), "never an agent"
    again = service.install_steps(LAUNCHD, PROGRAM, None, has_user=True)
    assert not [step for step in again if isinstance(step, Run) and step.command[0] == "sysadminctl"]


@pytest.mark.parametrize("kind", [SYSTEMD, LAUNCHD])
def test_uninstalling_leaves_settings_and_secrets(kind: service.Kind) -> None:
    gone = [step.path for step in service.uninstall_steps(kind) if isinstance(step, Remove)]
    assert kind.unit in gone
    assert not [path for path in gone if path.startswith(str(Path(kind.settings).parent))]


@pytest.mark.parametrize("program", ["/home/mina/.venv/bin/eidproxy", "/Users/mina/eidproxy/.venv/bin/eidproxy"])
def test_a_program_in_a_home_is_refused(program: str) -> None:
    with pytest.raises(ServiceError, match="/opt/eidproxy"):
        service.install_steps(SYSTEMD, program, None)


def test_what_fails_is_said_and_what_may_fail_is_not() -> None:
    service.carry_out(Run(("x",), may_fail=True), run=lambda _: 3)
    with pytest.raises(ServiceError, match="x y failed with exit status 3"):
        service.carry_out(Run(("x", "y")), run=lambda _: 3)
    with pytest.raises(ServiceError, match="is not installed"):
        service.carry_out(Run(("no-such-program-here",)))
    with pytest.raises(ServiceError, match="plan9"):
        service.kind_of("plan9")
    assert service.kind_of("darwin") is LAUNCHD


@pytest.mark.parametrize(
    ("kind", "said", "state"),
    [
        (SYSTEMD, "active\n", "active"),
        (SYSTEMD, "", "unknown"),
        (LAUNCHD, "system/com.eidproxy = {\n\tstate = running\n\tpid = 3\n}\n", "running"),
        (LAUNCHD, "Could not find service\n", "not loaded"),
    ],
)
def test_the_state_in_a_word(kind: service.Kind, said: str, state: str) -> None:
    assert service.state_of(kind, lambda _: said) == state


# --- For real ------------------------------------------------------------------------------------------------------


def eidproxy(program: Path, *words: str, say: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT), **env}
    code = (
        f"import sys; sys.executable = {str(program.with_name('python'))!r}; from eidproxy.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, "service", *words]
    return subprocess.run(command, input=say, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program where a service may read it."""
    path = tmp_path / "opt/bin/eidproxy"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is of Linux")
def test_it_is_installed_and_removed(router: Router, tmp_path: Path, program: Path) -> None:
    need("systemctl")
    (analyze,) = need("systemd-analyze")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    settings = tmp_path / "eidproxy.toml"
    settings.write_text(f'[router]\nurl = "{router.url}"\n')
    words = ("install", "--config", str(settings), "--root", str(root))

    asked = eidproxy(program, *words, say="n\n")
    assert asked.returncode == 1
    assert "ok    router: answers" in asked.stdout
    assert f"write   {root}/etc/systemd/system/eidproxy.service" in asked.stdout
    assert "Continue?" in asked.stdout
    assert not (root / "etc/systemd").exists(), "nothing was done"

    done = eidproxy(program, *words, say="y\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "etc/eidproxy/eidproxy.toml").read_text() == settings.read_text()
    assert (root / "etc/eidproxy/credentials").stat().st_mode & 0o777 == 0o700
    link = root / "etc/systemd/system/multi-user.target.wants/eidproxy.service"
    assert link.is_symlink(), "systemctl itself enabled it"
    unit = root / "etc/systemd/system/eidproxy.service"
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr

    # Again, with the settings that are there.
    unit.unlink()
    assert eidproxy(program, "install", "--yes", "--root", str(root)).returncode == 0
    assert unit.exists()

    gone = eidproxy(program, "uninstall", "--yes", "--root", str(root))
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert not unit.exists()
    assert not link.is_symlink()
    assert (root / "etc/eidproxy/eidproxy.toml").exists()


def test_what_would_not_serve_is_not_installed(tmp_path: Path, program: Path) -> None:
    settings = tmp_path / "eidproxy.toml"
    settings.write_text('[router]\nurl = "http://127.0.0.1:9"\n')
    done = eidproxy(program, "install", "--yes", "--config", str(settings), "--root", str(tmp_path / "root"))
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert not (tmp_path / "root").exists()
    missing = eidproxy(program, "install", "--yes", "--root", str(tmp_path / "root"))
    assert missing.returncode == 78
    assert "--config" in missing.stderr


def test_secrets_of_the_service_count_for_its_check(router: Router, tmp_path: Path, program: Path) -> None:
    """A server beyond loopback wants a key: it lies where the unit will load it from."""
    root = tmp_path / "root"
    folder = root / "etc/eidproxy/credentials"
    folder.mkdir(parents=True)
    (root / "etc/eidproxy/eidproxy.toml").write_text(f'[router]\nurl = "{router.url}"\n[server]\nhost = "0.0.0.0"\n')
    assert eidproxy(program, "install", "--root", str(root), say="n\n").returncode == 78
    (folder / "server_api_key").write_text("key-of-the-service-0001\n")
    asked = eidproxy(program, "install", "--root", str(root), say="n\n")
    assert "Continue?" in asked.stdout
    assert "key-of-the-service" not in asked.stdout + asked.stderr


def test_status_tells_how_it_is(program: Path) -> None:
    done = eidproxy(program, "status")
    rows = dict(re.findall(r"^(\w+) +(.+)$", done.stdout, re.MULTILINE))
    assert list(rows) == ["unit", "state", "settings", "log"]
    assert (done.returncode == 0) is (rows["state"] in ("active", "running"))
