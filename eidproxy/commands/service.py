"""`eidproxy service`: make it a service of this machine, as deploy/README.md does it by hand, and take it away again.

On Linux that is a unit of systemd, on a Mac a LaunchDaemon: never an agent, which macOS keeps from the local network
and which ends with the login. A plan is made from values first, and shown; nothing is done before somebody said yes.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_UNITS = Path(__file__).parents[1] / "units"
"""Beside this package: the files that `deploy/` shows too."""
_USER = "_eidproxy"
_PROGRAM = "/opt/eidproxy/bin/eidproxy"
"""What stands in the units, and is replaced by the program that runs."""

_PRIVATE = ("/home/", "/root/", "/Users/", "/var/root/")
"""Where no service can read: the unit has ProtectHome, and a user of its own."""


class Write(NamedTuple):
    """A file, its text and its mode."""

    path: str
    text: str
    mode: int = 0o644


class Folder(NamedTuple):
    """A folder that must be there, and its mode."""

    path: str
    mode: int = 0o755


class Remove(NamedTuple):
    """A file that goes."""

    path: str


class Run(NamedTuple):
    """A command. One that may fail is for what may be gone already."""

    command: tuple[str, ...]
    may_fail: bool = False


Step = Write | Folder | Remove | Run


class Kind(NamedTuple):
    """What differs between the two systems."""

    unit: str
    """Where its file goes."""
    settings: str
    log: str
    """How its log is read."""
    state: tuple[str, ...]
    """The command that tells how it is."""


SYSTEMD = Kind(
    "/etc/systemd/system/eidproxy.service",
    "/etc/eidproxy/eidproxy.toml",
    "journalctl -u eidproxy",
    ("systemctl", "is-active", "eidproxy"),
)
LAUNCHD = Kind(
    "/Library/LaunchDaemons/com.eidproxy.plist",
    "/usr/local/etc/eidproxy/eidproxy.toml",
    "tail /var/log/eidproxy.log",
    ("launchctl", "print", "system/com.eidproxy"),
)
_NEWSYSLOG = "/etc/newsyslog.d/eidproxy.conf"


class ServiceError(Exception):
    """It cannot be done here. The text says why and what to do."""


def kind_of(platform: str) -> Kind:
    """Launchd on a Mac, systemd on Linux. Raises ServiceError elsewhere."""
    if platform == "darwin":
        return LAUNCHD
    if platform.startswith("linux"):
        return SYSTEMD
    raise ServiceError(f"there is no service for {platform}: run eidproxy serve under what starts programs there")


def to_install(kind: Kind, program: str, settings: str | None, *, has_user: bool = False, root: str = "") -> list[Step]:
    """What installing does. `settings` is the text of the settings file; None leaves the one that is there.

    With a `root`, a folder with a system that does not run, nothing is started.
    """
    if program.startswith(_PRIVATE):
        raise ServiceError(
            f"{program} is in a home, which a service cannot read: install it in /opt/eidproxy (deploy/README.md)"
        )
    unit = (_UNITS / Path(kind.unit).name).read_text("utf-8").replace(_PROGRAM, program)
    steps: list[Step] = [Folder(str(Path(kind.settings).parent))]
    if settings is not None:
        steps.append(Write(kind.settings, settings))
    if kind is SYSTEMD:
        steps += [Folder("/etc/eidproxy/credentials", 0o700), Write(kind.unit, unit)]
        if root:
            return [*steps, Run(("systemctl", f"--root={root}", "enable", "eidproxy"))]
        return [*steps, Run(("systemctl", "daemon-reload")), Run(("systemctl", "enable", "--now", "eidproxy"))]
    if not has_user:
        steps.insert(0, Run(("sysadminctl", "-addUser", _USER, "-UID", "390", "-roleAccount")))
    return [
        *steps,
        Run(("install", "-m", "640", "-o", _USER, "/dev/null", "/var/log/eidproxy.log")),
        Write(_NEWSYSLOG, (_UNITS / "newsyslog.eidproxy.conf").read_text("utf-8")),
        Write(kind.unit, unit),
        Run(("launchctl", "bootout", "system/com.eidproxy"), may_fail=True),
        Run(("launchctl", "bootstrap", "system", kind.unit)),
    ]


def to_uninstall(kind: Kind, *, root: str = "") -> list[Step]:
    """What uninstalling does. Settings, secrets, log and user stay."""
    if kind is LAUNCHD:
        stop = Run(("launchctl", "bootout", "system/com.eidproxy"), may_fail=True)
        return [stop, Remove(kind.unit), Remove(_NEWSYSLOG)]
    if root:
        return [Run(("systemctl", f"--root={root}", "disable", "eidproxy"), may_fail=True), Remove(kind.unit)]
    disable = Run(("systemctl", "disable", "--now", "eidproxy"), may_fail=True)
    return [disable, Remove(kind.unit), Run(("systemctl", "daemon-reload"))]


def shown(step: Step, root: str = "") -> str:
    """One line for the person who is asked."""
    match step:
        case Write(path, text, mode):
            return f"write   {root}{path} ({text.count(chr(10))} lines, mode {mode:o})"
        case Folder(path, mode):
            return f"make    {root}{path}/ (mode {mode:o})"
        case Remove(path):
            return f"remove  {root}{path}"
        case Run(command):
            return f"run     {shlex.join(command)}"


def do(step: Step, root: str = "", run: Callable[[Sequence[str]], int] | None = None) -> None:
    """Do it. Raises OSError, ServiceError."""
    match step:
        case Write(path, text, mode):
            target = Path(root + path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, "utf-8")
            target.chmod(mode)
        case Folder(path, mode):
            Path(root + path).mkdir(parents=True, exist_ok=True)
            Path(root + path).chmod(mode)
        case Remove(path):
            Path(root + path).unlink(missing_ok=True)
        case Run(command, may_fail):
            code = (run or _run)(command)
            if code and not may_fail:
                raise ServiceError(f"{shlex.join(command)} ended with {code}")


def _run(command: Sequence[str]) -> int:
    if shutil.which(command[0]) is None:
        raise ServiceError(f"{command[0]} is not on this machine")
    return subprocess.run(command, check=False).returncode  # noqa: S603  # words of ours, and the folder that was named


def program_of_this() -> str:
    """The program that runs, by its whole path."""
    beside = Path(sys.executable).with_name("eidproxy")
    return str(beside if beside.exists() else Path(sys.argv[0]).resolve())


def credentials(root: str = "") -> dict[str, str]:
    """The secrets that the unit of systemd will load, as variables that name their files."""
    folder = Path(f"{root}/etc/eidproxy/credentials")
    files = sorted(folder.iterdir()) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return {f"EIDPROXY_{file.name.upper()}_FILE": str(file) for file in files}


def has_user() -> bool:
    """Whether the Mac's user of the service is there."""
    import pwd

    return any(entry.pw_name == _USER for entry in pwd.getpwall())


def is_root() -> bool:
    """Whether files of the system can be written."""
    return os.geteuid() == 0


def state_of(kind: Kind, run: Callable[[Sequence[str]], str] | None = None) -> str:
    """What the system says of the service, in a word or two."""
    text = (run or _said)(kind.state).strip()
    if kind is SYSTEMD:
        return text.splitlines()[0] if text else "not known"
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("state =")]
    return lines[0].removeprefix("state =").strip() if lines else "not loaded"


def _said(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not on this machine"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603  # words of ours
