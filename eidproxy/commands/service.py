"""`eidproxy service`: install eidproxy as a service of this machine, as deploy/README.md does by hand, and remove it.

On Linux that is a systemd unit, on a Mac a LaunchDaemon: never an agent, which macOS keeps from the local network and
which ends with the login. The steps are computed and shown first; nothing is done before the user agrees.
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
"""The unit files, which `deploy/` shows too."""
_SERVICE_USER = "_eidproxy"
_PROGRAM = "/opt/eidproxy/bin/eidproxy"
"""The program's path in the unit files; replaced by the path of the program that runs."""

_HOME_FOLDERS = ("/home/", "/root/", "/Users/", "/var/root/")
"""Folders that no service can read: the unit has ProtectHome, and a user of its own."""


class Write(NamedTuple):
    """A file to write, its text and its mode."""

    path: str
    text: str
    mode: int = 0o644


class Folder(NamedTuple):
    """A folder to create if it is missing, and its mode."""

    path: str
    mode: int = 0o755


class Remove(NamedTuple):
    """A file to remove."""

    path: str


class Run(NamedTuple):
    """A command to run. It may fail where its object may be gone already."""

    command: tuple[str, ...]
    may_fail: bool = False


Step = Write | Folder | Remove | Run


class Kind(NamedTuple):
    """The paths and commands of one service manager, systemd or launchd."""

    unit: str
    """The path of the unit file."""
    settings: str
    log: str
    """The command that shows the log."""
    state: tuple[str, ...]
    """The command that reports the state of the service."""


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
    """A step that cannot be done here. The text says why and what to do."""


def kind_of(platform: str) -> Kind:
    """Return launchd on a Mac, systemd on Linux. Raises ServiceError elsewhere."""
    if platform == "darwin":
        return LAUNCHD
    if platform.startswith("linux"):
        return SYSTEMD
    raise ServiceError(f"cannot install a service on {platform}; run eidproxy serve with its service manager")


def install_steps(
    kind: Kind, program: str, settings: str | None, *, has_user: bool = False, root: str = ""
) -> list[Step]:
    """Return the steps of an install. `settings` is the text of the settings file; None keeps the existing one.

    With a `root`, the folder of a system that does not run, nothing is started. Raises ServiceError.
    """
    if program.startswith(_HOME_FOLDERS):
        raise ServiceError(
            f"{program} is in a home folder, which no service can read; install it in /opt/eidproxy (deploy/README.md)"
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
        steps.insert(0, Run(("sysadminctl", "-addUser", _SERVICE_USER, "-UID", "390", "-roleAccount")))
    return [
        *steps,
        Run(("install", "-m", "640", "-o", _SERVICE_USER, "/dev/null", "/var/log/eidproxy.log")),
        Write(_NEWSYSLOG, (_UNITS / "newsyslog.eidproxy.conf").read_text("utf-8")),
        Write(kind.unit, unit),
        Run(("launchctl", "bootout", "system/com.eidproxy"), may_fail=True),
        Run(("launchctl", "bootstrap", "system", kind.unit)),
    ]


def uninstall_steps(kind: Kind, *, root: str = "") -> list[Step]:
    """Return the steps of an uninstall. Settings, secrets, log and user stay."""
    if kind is LAUNCHD:
        stop = Run(("launchctl", "bootout", "system/com.eidproxy"), may_fail=True)
        return [stop, Remove(kind.unit), Remove(_NEWSYSLOG)]
    if root:
        return [Run(("systemctl", f"--root={root}", "disable", "eidproxy"), may_fail=True), Remove(kind.unit)]
    disable = Run(("systemctl", "disable", "--now", "eidproxy"), may_fail=True)
    return [disable, Remove(kind.unit), Run(("systemctl", "daemon-reload"))]


def describe_step(step: Step, root: str = "") -> str:
    """Return a step as one line for the user."""
    match step:
        case Write(path, text, mode):
            return f"write   {root}{path} ({text.count(chr(10))} lines, mode {mode:o})"
        case Folder(path, mode):
            return f"make    {root}{path}/ (mode {mode:o})"
        case Remove(path):
            return f"remove  {root}{path}"
        case Run(command):
            return f"run     {shlex.join(command)}"


def carry_out(step: Step, root: str = "", run: Callable[[Sequence[str]], int] | None = None) -> None:
    """Carry out a step. Raises OSError, ServiceError."""
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
            code = (run or _run_command)(command)
            if code and not may_fail:
                raise ServiceError(f"{shlex.join(command)} failed with exit status {code}")


def _run_command(command: Sequence[str]) -> int:
    if shutil.which(command[0]) is None:
        raise ServiceError(f"{command[0]} is not installed")
    return subprocess.run(command, check=False).returncode  # noqa: S603  # words of ours, and the folder that was named


def this_program() -> str:
    """Return the full path of the program that runs."""
    beside = Path(sys.executable).with_name("eidproxy")
    return str(beside if beside.exists() else Path(sys.argv[0]).resolve())


def credentials(root: str = "") -> dict[str, str]:
    """Return the secrets that the systemd unit will load, as environment variables that name their files."""
    folder = Path(f"{root}/etc/eidproxy/credentials")
    files = sorted(folder.iterdir()) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return {f"EIDPROXY_{file.name.upper()}_FILE": str(file) for file in files}


def has_user() -> bool:
    """Return whether the service's user exists on this Mac."""
    import pwd

    return any(entry.pw_name == _SERVICE_USER for entry in pwd.getpwall())


def is_root() -> bool:
    """Return whether this process can write the system's files."""
    return os.geteuid() == 0


def state_of(kind: Kind, run: Callable[[Sequence[str]], str] | None = None) -> str:
    """Return the state of the service as the system reports it, in a word or two."""
    text = (run or _output_of)(kind.state).strip()
    if kind is SYSTEMD:
        return text.splitlines()[0] if text else "unknown"
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("state =")]
    return lines[0].removeprefix("state =").strip() if lines else "not loaded"


def _output_of(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not installed"
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603  # words of ours
