"""python -m tests.release cut VERSION    write the version and the date where they stand
python -m tests.release build          make the sdist and the wheel, judge them, and run the demo from the wheel

`make release VERSION=…` does both, between the checks before and the tag after.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.environments import ROOT, program

REPEATS = ("Dockerfile", "deploy/compose.yaml", "deploy/kubernetes.yaml", "deploy/kubernetes.replicas.yaml")
"""Files that repeat the version of pyproject.toml; tests/deploy/test_artefacts.py holds them to it."""


def cut(root: Path, version: str, today: str) -> None:
    """Give the unreleased changes a version and a date."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is no version: three numbers, as in 0.2.0")
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text("utf-8")
    head, unreleased, rest = text.partition("## [Unreleased]\n")
    changes = rest.partition("\n## [")[0].strip()
    if not unreleased or not changes:
        sys.exit("CHANGELOG.md has no unreleased changes")
    if f"## [{version}]" in text:
        sys.exit(f"CHANGELOG.md has {version} already")
    project = root / "pyproject.toml"
    old = re.findall(r'^version = "(.+)"$', project.read_text("utf-8"), re.MULTILINE)
    for path in (project, *(root / name for name in REPEATS)):
        said = path.read_text("utf-8")
        stands = rf'(version="|version = "|image: eidproxy:){re.escape(old[0])}'
        path.write_text(re.sub(stands, rf"\g<1>{version}", said), "utf-8")
    changelog.write_text(f"{head}{unreleased}\n## [{version}] - {today}\n{rest}", "utf-8")


def build() -> None:
    """Make what is released, and use it as somebody would who has nothing of it yet."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "dist")
        run("python", "-m", "build", "--no-isolation", "--outdir", str(made), str(ROOT))
        files = sorted(str(path) for path in made.iterdir())
        run("twine", "check", "--strict", *files)
        (wheel,) = (name for name in files if name.endswith(".whl"))
        fresh = Path(folder, "fresh")
        run("python", "-m", "venv", str(fresh))
        own = str(fresh / "bin/python")
        run(own, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(ROOT / "requirements.lock"))
        run(own, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
        show = ["demo", "--once", "--port", "0"]
        run(str(fresh / "bin/eidproxy"), *show)
        run("pipx", "run", "--no-cache", "--spec", wheel, "eidproxy", *show)
        run("uvx", "--no-cache", "--from", wheel, "eidproxy", *show)
        target = ROOT / "dist"
        target.mkdir(exist_ok=True)
        for name in files:
            (target / Path(name).name).write_bytes(Path(name).read_bytes())
            print(f"dist/{Path(name).name}")


def run(name: str, *arguments: str) -> None:
    """Run a program of the release's environment, or any by its path. Ends the release when it fails."""
    path = name if os.sep in name else str(program("release", name))
    print("$", Path(name).name, *arguments, flush=True)
    with tempfile.TemporaryDirectory() as elsewhere:  # not the source's folder, which could stand in for the wheel
        done = subprocess.run([path, *arguments], cwd=elsewhere)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["cut", version]:
            cut(ROOT, version, datetime.date.today().isoformat())
        case ["build"]:
            build()
        case _:
            sys.exit(__doc__)
