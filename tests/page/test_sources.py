"""The page's sources: types are right, and what is vendored is what its packages make."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tests.deploy.files import run
from tests.page.stub import PAGE

HERE = Path(__file__).parent


def test_types(packages: Path) -> None:
    """`tsc --checkJs` finds nothing in the page's modules."""
    done = run("node", packages / "node_modules" / "typescript" / "bin" / "tsc", "--project", HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_vendored_parser(packages: Path) -> None:
    """The vendored parser is what its packages of the locked versions make."""
    done = run("node", "vendor.js", "--check", PAGE / "vendor" / "markdown-it.js", cwd=packages)
    assert done.returncode == 0, done.stdout + done.stderr


def test_vendored_files_are_noted() -> None:
    """Each vendored module has its licence and a line in README; the parser also its digest."""
    folder = PAGE / "vendor"
    noted = (folder / "README.txt").read_text("utf-8")
    for module in folder.glob("*.js"):
        assert (folder / f"{module.stem}.LICENSE.txt").is_file()
        assert f"{module.name} " in noted
    digest = re.search("sha256 ([0-9a-f]{64})", noted)
    assert digest is not None
    assert digest[1] == hashlib.sha256((folder / "markdown-it.js").read_bytes()).hexdigest()


def test_every_module_is_loaded_at_once() -> None:
    """The page names each of its modules, so that a browser asks for all of them in one round."""
    page = (PAGE / "chat.html").read_text("utf-8")
    named = set(re.findall(r'(?:href|src)="/chat/([^"]+\.js)"', page))
    modules = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.js")}
    # The grammar comes after them, when one can ask already.
    assert named == modules - {"sw.js", "addresses.js", "grammar.js", "markdown.js", "math.js", "vendor/markdown-it.js"}
