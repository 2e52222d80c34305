"""Rules and dashboard against the truth: a Prometheus that scraped a running eidproxy knows every name and label."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, documents, passed, run
from tests.lab.client import CHAT, ask, chat
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import status, stream
from tests.lab.tools import free_port, need, size, until

RULES = DEPLOY / "eidproxy.rules.yml"
TESTS = DEPLOY / "eidproxy.rules.test.yml"
ROWS = ["Now", "Gate", "Latency", "Failures", "Process"]
SCRAPES = 6


def rules() -> list[Any]:
    """Every rule of every group."""
    return [rule for group in documents(RULES)[0]["groups"] for rule in group["rules"]]


def dashboard() -> Any:
    """The dashboard."""
    return json.loads((DEPLOY / "grafana.json").read_text("utf-8"))


def queries() -> dict[str, str]:
    """Every expression of rules and dashboard by where it stands, with the dashboard's variables filled in."""
    found = {f"rule {rule['alert']}": rule["expr"] for rule in rules()}
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for note in board["annotations"]["list"]:
        found[f"annotation {note['name']}"] = note["expr"]
    return {where: expr.replace("$__rate_interval", "10s").replace("$instance", ".*") for where, expr in found.items()}


# --- Without a server ----------------------------------------------------------------------------------------------


def test_promtool_accepts_rules_and_scraping() -> None:
    (promtool,) = need("promtool")
    said = passed(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert f"SUCCESS: {len(rules())} rules found" in said
    passed(promtool, "check", "config", DEPLOY / "prometheus.yml")


def test_rules_ring_when_they_must() -> None:
    (promtool,) = need("promtool")
    assert "SUCCESS" in passed(promtool, "test", "rules", TESTS, cwd=DEPLOY)
    cases = [case for test in documents(TESTS)[0]["tests"] for case in test["alert_rule_test"]]
    rung = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert rung == {rule["alert"] for rule in rules()}
    print(f"{len(rules())} rules, {len(cases)} cases")


@pytest.mark.parametrize("expr", [None, "vector(0) > 1", "vector(1)"], ids=["right", "never", "always"])
def test_a_rule_that_is_wrong_fails_its_test(tmp_path: Path, expr: str | None) -> None:
    """The control: with one rule at a time made silent, or made to ring for everybody, promtool finds it."""
    (promtool,) = need("promtool")
    (document,) = documents(TESTS)
    passing = []
    for rule in rules():
        wrong = {**rule, "expr": expr or rule["expr"]}
        about = {
            index: [case for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
            for index, test in enumerate(document["tests"])
        }
        cases = [{**document["tests"][index], "alert_rule_test": found} for index, found in about.items() if found]
        # Only what is about this rule; JSON is YAML too.
        (tmp_path / RULES.name).write_text(json.dumps({"groups": [{"name": "wrong", "rules": [wrong]}]}))
        (tmp_path / TESTS.name).write_text(json.dumps({**document, "tests": cases}))
        if run(promtool, "test", "rules", TESTS.name, cwd=tmp_path).returncode == 0:
            passing.append(rule["alert"])
    assert passing == ([] if expr else [rule["alert"] for rule in rules()])


def test_dashboard_is_well_formed() -> None:
    board = dashboard()
    panels = board["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            # Chosen by the reader, never the name of somebody's data source.
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}


# --- Against a live scrape -----------------------------------------------------------------------------------------


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.port = port

    def api(self, path: str, **parameters: str) -> Any:
        """The data of one call of its API."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, expr: str) -> list[Any]:
        """The series an expression gives now."""
        result = self.api("query", query=expr)["result"]
        assert isinstance(result, list)
        return result


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Debian's Prometheus with the shipped files, after some scrapes of an eidproxy that had something to do."""
    (program,) = need("prometheus")
    home = tmp_path_factory.mktemp("prometheus")
    (home / RULES.name).write_text(RULES.read_text("utf-8"))
    with Router() as router, Proxy(router) as proxy:
        text = (DEPLOY / "prometheus.yml").read_text("utf-8")
        for old, new in {
            "127.0.0.1:8790": f"127.0.0.1:{proxy.port}",
            "interval: 15s": f"interval: {size(250, 1000)}ms",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (home / "prometheus.yml").write_text(text)
        port = free_port()
        command = [
            program,
            f"--config.file={home}/prometheus.yml",
            f"--storage.tsdb.path={home}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            # Not in its manual: otherwise it looks for its targets only after five seconds.
            "--scrape.discovery-reload-interval=100ms",
        ]
        log = home / "log"
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=home) as process:
            try:
                server = Prometheus(port)
                until(lambda: _scrapes(server) >= 1, 30, "the first scrape")
                while (scrapes := _scrapes(server)) < SCRAPES:
                    _use(router, proxy)
                    until(lambda seen=scrapes: _scrapes(server) > seen, 30, "the next scrape")  # type: ignore[misc]
                yield server
            finally:
                process.terminate()
                process.wait(20)
                print(log.read_text()[-2000:])


def _scrapes(server: Prometheus) -> int:
    try:
        found = server.query('count_over_time(eidproxy_start_time_seconds{job="eidproxy"}[5m])')
    except (OSError, ValueError):  # it says "Service Unavailable" while it starts
        return 0
    return int(found[0]["value"][1]) if found else 0


def _use(router: Router, proxy: Proxy) -> None:
    """A little of everything that can happen."""
    for model in ("daily", "deep"):
        for script in (stream(), stream(interval=0.01), stream(finish=None, done=False), status(503)):
            router.enqueue(script)
            ask(proxy, "POST", CHAT, chat(model))
    ask(proxy, "POST", CHAT, chat("daily"), {"X-Eid-Priority": "background"})
    ask(proxy, "POST", CHAT, b"{")


SELECTOR = re.compile(r"\b(?:up|(?:eidproxy|process|python)_[a-z_]+)\b(?:\{(?P<matchers>[^}]*)\})?")
MATCHER = re.compile(r'(?P<label>\w+)(?P<op>=~|!~|!=|=)"(?P<value>[^"]*)"')
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) (?!bool)(?=[\w.(])")


def judge(server: Prometheus, expr: str) -> list[Any]:
    """What an expression returns, once every name, label and value in it was found in the scrape."""
    known: set[str] = {"le"}
    for selector in SELECTOR.finditer(expr):
        series = server.query(selector[0])
        assert series, f"no series is called {selector[0]}"
        known |= {label for one in series for label in one["metric"]}
        for matcher in MATCHER.finditer(selector["matchers"] or ""):
            if matcher["op"] == "=~" and re.fullmatch(r"\w+(\|\w+)+", matcher["value"]):
                for value in matcher["value"].split("|"):
                    others = (selector["matchers"] or "").replace(matcher[0], f'{matcher["label"]}="{value}"')
                    name = selector[0].partition("{")[0]
                    assert server.query(f"{name}{{{others}}}"), f"{name} has no {matcher['label']}={value}"
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        assert {label.strip() for label in grouping.split(",")} <= known, grouping
    # A comparison drops what is false; as a number it shows that there was something to compare.
    return server.query(COMPARISON.sub(r" \1 bool ", expr))


def test_every_expression_returns_data(prometheus: Prometheus) -> None:
    found = queries()
    empty = [where for where, expr in found.items() if not judge(prometheus, expr)]
    assert empty == []
    print(f"{len(rules())} rules and {len(found) - len(rules())} dashboard expressions returned data")


def test_quantiles_are_numbers(prometheus: Prometheus) -> None:
    """There was traffic in both modes, so no panel of latencies may show NaN alone."""
    for where, expr in queries().items():
        if "histogram_quantile" in expr and "rule" not in where:
            values = [series["value"][1] for series in prometheus.query(expr)]
            assert any(value not in ("NaN", "+Inf") for value in values), (where, values)


def test_legends_name_labels_that_are_there(prometheus: Prometheus) -> None:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            expr = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            for series in prometheus.query(expr):
                assert wanted <= set(series["metric"]), panel["title"]


def test_rules_evaluate_without_an_error(prometheus: Prometheus) -> None:
    def evaluated() -> list[Any]:
        groups = prometheus.api("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = until(evaluated, 20, "the first evaluation")
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in rules()}
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []


@pytest.mark.parametrize(
    "expr",
    [
        "eidproxy_gate_forced_release_total",
        'sum by (priority) (eidproxy_gate_queue_depth{priority="urgent"})',
        "sum by (model) (eidproxy_stream_chunks_total)",
        'eidproxy_requests_total{reason=~"router_rejected|router_refused"}',
    ],
    ids=["name", "value", "label", "alternative"],
)
def test_a_wrong_name_is_noticed(prometheus: Prometheus, expr: str) -> None:
    """The control: the judge above is awake."""
    with pytest.raises(AssertionError):
        judge(prometheus, expr)
