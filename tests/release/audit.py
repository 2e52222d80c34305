"""python -m tests.release.audit

Ask for each locked package whether an advisory speaks of it. Exits with 1 for one that does. Where no database of
advisories can be had, that is said, and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.environments import LOCKS, ROOT, is_made, program


def audited(lock: str) -> tuple[int, int, list[str]]:
    """How many packages of a lock were looked up, how many could not be, and what is said of them."""
    options = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    command = [str(program("release", "pip-audit")), *options, "-r", str(ROOT / lock)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        sys.exit(f"{lock}: pip-audit says {done.stderr.strip()[-500:]}")
    found = [
        f"{lock}: {package['name']} {package['version']}: {advisory['id']}, mended in {advisory['fix_versions']}"
        for package in packages
        for advisory in package.get("vulns", ())
    ]
    missed = sum("skip_reason" in package for package in packages)
    return len(packages) - missed, missed, found


def main() -> None:
    """Audit every lock of Python packages."""
    if not is_made("release"):
        print("no lock is audited: python -m tests.environments release makes what looks them up")
        return
    found = []
    locks = [path.relative_to(ROOT).as_posix() for path in LOCKS.values() if path.suffix == ".lock"]
    for lock in ("requirements.lock", "requirements-test.lock", *locks):
        known, missed, said = audited(lock)
        found += said
        if missed:
            print(f"{lock}: {missed} of {known + missed} packages are in no database that can be had here")
        else:
            print(f"{lock}: {known} packages, {len(said)} advisories")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
