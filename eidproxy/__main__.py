"""`python -m eidproxy`, and the console script."""

from typing import NoReturn

from eidproxy.signals import stop_signals

stop_signals.install()  # first: what follows is half a second of imports


def main() -> NoReturn:
    """Run a command."""
    try:
        from eidproxy.cli import cli

        cli(prog_name="eidproxy")
    finally:
        stop_signals.ignore()
    raise SystemExit(0)


if __name__ == "__main__":
    main()
