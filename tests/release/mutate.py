"""python -m tests.release.mutate [module …]

Change one thing at a time in the functions of the pure modules, and see whether their tests notice (mutmut). A mutant
that they do not notice is killed by a better test, or excused below. Exits with 1 for any other. Tables are not
mutated: tests hold them against a second writing. Tests that measure a cost are left out: a mutant costs more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig

from tests.environments import ROOT, program
from tests.house.test_imports import PATHS, PURE

PLACE = ROOT / "build" / "mutation"

EXCUSED = (
    # Where, what is changed into what, and why nobody could notice.
    ("", r"= (False|None|\"\") => .*= (None|\"\")$", "one false value for another"),
    ("", r"=(False|True)\)+ => .*(=None|=False|, )\)+$", "lengths that are equal, or one false value for another"),
    ("", r"(?i)(ascii|utf-8)(?-i:.*) => .*(ASCII|UTF-8)", "another spelling of a codec"),
    ("", r"return -1 => .*return -2", "any negative number says that too little is there"),
    ("", r"raise ValueError\(", "the words of a ValueError that nobody is shown"),
    ("http1:_transitions|egress:_parse_networks", "", "it runs at import, before a mutant is chosen"),
    (
        "http1:check_partial_head",
        "",
        "it looks at more than it must, or leaves a refusal to the whole head",
    ),
    ("http1:_parse_request_line", r"split", "three words are wanted, whether a fourth holds the rest"),
    ("http1:parse_head", r"strip\(", "no other blank may stand in a line"),
    ("http1:parse_head", r"=> .*b\"XXXX\"\.join\(headers\)", "an X may stand in a name"),
    ("http1:_parse_framing", r"lstrip", "a length of digits alone has no X"),
    ("http1:_parse_host", r'b"%" not in host => .*XX', "each name without a percent sign is percent-encoded"),
    ("http1:ChunkedBody.__init__", r"_left|surplus", "it is set before it is read"),
    ("http1:ChunkedBody", r">= 0.* => .*> 0|>= 0.* => .*>= 1|end < 0: => ", "no step ends at 0"),
    (
        "http1:ChunkedBody",
        r"_MAX_CHUNK_LINE_BYTES\)(?!:).* => .*(None\)|, \))",
        "a longer line is refused by its length",
    ),
    ("http1:ChunkedBody._read_whole_chunks", r"0 < size <= room", "what the loop leaves the states take"),
    ("http1:ChunkedBody._read_line_end", r">= 2 => .*>= 3", "it waits for a byte more before it refuses"),
    ("sse:EventParser._feed_plain", "", "what the short way leaves the long way takes, with the same events"),
    (
        "sse:EventParser.feed",
        r"has_no_cr|cut|_BOM",
        "what the short way leaves the long way takes, with the same events",
    ),
    ("sse:EventParser._feed_any", r"_BOM", "it waits a byte longer: no event is so short"),
    ("sse:EventParser._feed_any", r"removeprefix", "an empty line more between two events is none"),
    ("sse:EventParser.__init__", r"_skips_lf = False .*=> .*_skips_lf = None", "one false value for another"),
    (
        "sse:EventParser.__init__",
        r"_skips_lf = False .*=> .*_skips_lf = True",
        "an empty line more before the first event is none",
    ),
    ("stream:Stream.feed", r"frame = ", "what the short way leaves the long way takes, with the same bytes"),
    (
        "stream:Stream.feed",
        r"<= _MAX_STREAM_BYTES.* => .*< _MAX_STREAM_BYTES",
        "the long way takes the last event, with the same bytes",
    ),
    ("stream:Stream._feed_long_way", r"is_plain|frame = ", "what the short way leaves the long way takes"),
    ("stream:Stream._feed_long_way", r"return sent", "joining one is that one"),
    ("stream:Stream.close", r"join", "it is one"),
    ("sanitize:Sanitizer._filter_delta", r"calls = None", "one false value for another"),
    ("dialect:_read_loosely", r"=> .*b\"XX \\t\\r\\nXX\"", "without its X no JSON becomes null or an empty list"),
    ("errors:_text", r"return \"\"", "a word in capitals is none"),
    ("chat:_refusal_for", r"\"mode\"", "the body of the chat surface: tests/unit/test_surface.py"),
    ("chat:_has_other_type", r"field = ", "no field has that name"),
    ("repair:repair", r"<= _MAX_MARKED_BYTES", "a bound between a token and a book"),
    ("repair:repair", r"ufffd", "two spellings of one escape"),
    ("repair:_mark", r"16\)", "a digit of base 16 is one of base 17"),
    ("repair:Seams.join", r"or True", "nothing unmarked is nothing"),
    ("repair:_unmark", r"_SURROGATE_MARKS|at = 0", "a run has marks of one kind, and half of a pair begins with d"),
    ("tool_calls:ToolCalls._find_call", r"or True", "nothing has the key None"),
    ("tool_calls:ToolCalls", r"_scanned|_MAX_KEPT_CHARS", "bounds of work, not of meaning"),
    ("tool_calls:ToolCalls._is_complete", r"=> .*_open_arguments\.get\(number, \"XXXX\"\)", "neither is JSON"),
    ("egress:Address.__str__", r"to_bytes|range", "the default, or places where no run can be"),
    ("egress:parse_network", r"bits \+ 1", "more than there are bits"),
    ("egress:_carries_ipv4", r"version == 4", "no carrier holds an address of version 4"),
    ("admission:AdmissionQueue", r"_arrivals", "numbers only grow"),
    ("admission:AdmissionQueue._next", r"number <", "no two have one number"),
    ("wedge:WedgeGuard", r"_apply\(", "the state that everybody is told stays, and so does its time"),
    ("wedge:(Passage|WedgeGuard).__init__", r"math\.inf|= None", "it is set before it is read"),
)


def prepare(modules: list[str]) -> None:
    """A copy of what the tests need, with mutmut's settings."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in ("eidproxy", "tests", "deploy"):
        shutil.rmtree(PLACE / name, ignore_errors=True)
        shutil.copytree(ROOT / name, PLACE / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    tests = [f"tests/unit/test_{module}.py" for module in modules]
    measured = "costs_the_same or holds_the_loop or is_expensive or costs_more or log_and_the_status"
    settings = {
        "source_paths": ["eidproxy/"],
        "only_mutate": [PATHS[module].relative_to(ROOT).as_posix() for module in modules],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-q", "-p", "no:cacheprovider", "-k", f"not ({measured})"],
        "also_copy": ["tests/", "eidproxy/", "deploy/"],
    }
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (PLACE / "pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]), "utf-8")


def mutmut(*arguments: str, quiet: bool = False) -> str:
    """Run mutmut in the copy."""
    command = ["nice", "-n", "19", str(program("release", "mutmut")), *arguments]
    # What the package itself needs is in the environment of the tests, and not in that of a release.
    needs = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(command, cwd=PLACE, env=needs, stdout=subprocess.PIPE if quiet else None, text=True)
    if done.returncode and not quiet:
        sys.exit(done.returncode)
    return done.stdout or ""


def place(name: str) -> str:
    """`module:Class.function` of a mutant's name."""
    path, function = name.rpartition("__mutmut_")[0].rsplit(".", 1)
    module = path.rpartition(".")[2]
    kind, _, method = function.removeprefix("x").removeprefix("ǁ").rpartition("ǁ")
    return f"{module}:{kind}.{method}" if kind else f"{module}:{function.removeprefix('x_')}"


def change(name: str) -> str:
    """What a mutant changes, as `old => new`."""
    lines = mutmut("show", name, quiet=True).splitlines()
    old = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    new = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    return f"{' '.join(old)} => {' '.join(new)}"


def excuse(where: str, what: str) -> str | None:
    """Why nobody could notice, or None."""
    for place_pattern, pattern, reason in EXCUSED:
        if re.match(place_pattern, where) and re.search(pattern, what):
            return reason
    return None


def main() -> None:
    """Run the mutants of all pure modules, or of those that are named, and tell of the survivors."""
    modules = sys.argv[1:] or list(PURE)
    prepare(modules)
    mutmut("run", "--max-children", str(max((os.cpu_count() or 2) // 2, 1)))
    results = [line.split(": ") for line in mutmut("results", "--all", "true", quiet=True).splitlines() if ": " in line]
    ended = [(name.strip(), end.strip()) for name, end in results if place(name).partition(":")[0] in modules]
    survivors = [(place(name), change(name), name) for name, end in ended if end not in ("killed", "timeout")]
    excused = 0
    for where, what, name in survivors:
        reason = excuse(where, what)
        excused += reason is not None
        print(f"{'excused' if reason else 'SURVIVED'} {where}: {what}{f': {reason}' if reason else f' ({name})'}")
    left = len(survivors) - excused
    print(f"{len(ended)} mutants: {len(ended) - len(survivors)} killed, {excused} excused, {left} survived")
    sys.exit(left > 0)


if __name__ == "__main__":
    main()
