"""python -m tests.coverage_shell [test file …]

How much of the shell (all that is not pure) the tests of running processes reach, printed for each module. A figure to
look at, not a bound: `tests/coverage_pure.py` has one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.house.test_imports import PATHS, PURE

ROOT = Path(__file__).parent.parent

FILES = """
    unit/test_cli
    unit/test_config
    promises/test_departures
    promises/test_gate_outside
    unit/test_shared
    promises/test_gate_replicas
    unit/test_logs
    promises/test_proxy
    unit/test_resolver
    promises/test_shutdown
    unit/test_surface
    unit/test_tokens
    unit/test_top
    unit/test_transport
    unit/test_validation
    unit/test_view
"""
"""Those that start eidproxy, or run a part of its shell, and take seconds."""

CONFIG = """
[run]
branch = true
parallel = true
source = eidproxy
patch = subprocess
"""


def main() -> None:
    """Run them and print the figure. Exits with 1 when a test fails."""
    files = sys.argv[1:] or [f"tests/{name}.py" for name in FILES.split()]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "rc")
        config.write_text(CONFIG)
        coverage = [sys.executable, "-m", "coverage"]
        # The test process is traced as well as what it starts. `Proxy` gives its processes a clean environment, so it
        # is told by name.
        environment = os.environ | {
            "COVERAGE_FILE": str(Path(folder, "data")),
            "COVERAGE_RCFILE": str(config),
            "EIDPROXY_COVERAGE": "1",
        }
        tests = ["-m", "pytest", "-q", "-n", "3", "--dist", "worksteal", "-p", "no:cacheprovider", *files]
        run = subprocess.run([*coverage, "run", *tests], cwd=ROOT, env=environment)
        subprocess.run([*coverage, "combine", "--quiet"], cwd=ROOT, env=environment)
        shell = ",".join(str(path.relative_to(ROOT)) for module, path in PATHS.items() if module not in PURE)
        report = subprocess.run([*coverage, "report", f"--include={shell}"], cwd=ROOT, env=environment)
    sys.exit(run.returncode or report.returncode)


if __name__ == "__main__":
    main()
