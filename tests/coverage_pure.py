"""python -m tests.coverage_pure [module …]

Each pure module must be covered whole, every branch, by the test file of its own name alone. Exits with 1 otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.house.test_imports import PATHS, PURE

ROOT = Path(__file__).parent.parent


def covered(module: str) -> bool:
    """Run one module's tests under coverage and print what they missed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"COVERAGE_FILE": str(Path(folder) / "data")}
        coverage = [sys.executable, "-m", "coverage"]
        tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/unit/test_{module}.py"]
        run = subprocess.run([*coverage, "run", "--branch", *tests], cwd=ROOT, env=environment)
        report = subprocess.run(
            [*coverage, "report", "--show-missing", "--fail-under=100", f"--include={PATHS[module].relative_to(ROOT)}"],
            cwd=ROOT,
            env=environment,
        )
    return run.returncode == 0 and report.returncode == 0


def main() -> None:
    """Check all pure modules, or those that are named."""
    missed = [module for module in sys.argv[1:] or PURE if not covered(module)]
    if missed:
        sys.exit(f"not covered whole, or failed: {', '.join(missed)}")
    print("every branch of every pure module is covered by its own tests")


if __name__ == "__main__":
    main()
