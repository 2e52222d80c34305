"""validation: what the types of the settings cannot express, and settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from eidproxy.config import SettingsError, contradictions, load
from tests.lab.callers import check_refusal
from tests.lab.client import ask
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.tools import free_port
from tests.unit.test_config import SECRET, URL, run

BAD_URLS = [
    *("http://127.0.0.1/v1/v1", "http://127.0.0.1/V1", "http://127.0.0.1/v1?x", "http:///v1"),
    *(
        "http://127.0.0.1/v1//",
        "http://127.0.0.1/v1/chat/completions",
        "http://127.0.0.1/%76%31",
        "/v1",
        "http://a@b/v1",
    ),
    *("", "127.0.0.1:4000", "http://127.0.0.1:4000//", "http://127.0.0.1:4000/v2", "http://127.0.0.1:4000?x"),
    *("http://127.0.0.1:4000#x", "http://u:p@127.0.0.1:4000", "http://@127.0.0.1", "ftp://127.0.0.1", "http://"),
    *(
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1:",
        "http://127.0.0.1:x",
        "http://[::1",
        "http:/x",
    ),
    *("http://2130706433:80", "http://0x7f000001", "http://127.1", "http://0177.0.0.1", "http://127.0.0.01"),
    *("http://a_b.example", "http://-a.example", "http://a..example", "http://a.example.1", "http://١٢٧.0.0.1"),
    *("http://[::ffff:127.0.0.1]", "http://[0:0:0:0:0:0:0:1]", "HTTP //x", "unix:/x"),
    *(
        "http://127.0.0.1:80\n",
        " http://127.0.0.1",
        "http://127.0.0.1 ",
        "http://exa\u00admple",
        "http://\uff1127.0.0.1",
    ),
]
BLOCKED_URLS = [
    *("http://8.8.8.8", "http://169.254.169.254", "http://100.100.100.200", "http://[fd00:ec2::254]", "http://0.0.0.0"),
    *(
        "http://[::]",
        "http://224.0.0.1",
        "http://[2001:db8::1]",
        "http://192.0.2.1",
        "http://[fe80::1]",
        "http://172.32.0.1",
    ),
]


def test_router_url() -> None:
    """One process a spelling would take long: the loader itself, as the command calls it."""
    for url in [*BAD_URLS, *BLOCKED_URLS]:
        with pytest.raises(SettingsError) as caught:
            load(None, {"LLM_ROUTER_URL": url}, {})
        assert all(fault.startswith("router.") or "LLM_ROUTER_URL" in fault for fault in caught.value.faults), url
        assert (url in BLOCKED_URLS) == any("egress_blocked" in fault for fault in caught.value.faults), url
    for url in (
        "http://127.0.0.1:4000",
        "http://[::1]:4000",
        "https://router.internal",
        "http://10.0.0.1",
        "http://mini",
    ):
        addresses = {
            load(None, {"LLM_ROUTER_URL": url + tail}, {}).settings.router_address for tail in ("", "/", "/v1", "/v1/")
        }
        assert len(addresses) == 1, url


REFUSED_PARAMS = [
    *("model", "messages", "stream", "max_tokens", "temperature", "tools", "n", "user", "metadata", "extra_body"),
    *(
        "api_base",
        "base_url",
        "api_key",
        "fallbacks",
        "extra_headers",
        "headers",
        "proxy",
        "organization",
        "api_version",
    ),
    *("custom_llm_provider", "mock_response", "azure_ad_token", "aws_access_key_id", "vertex_project", "model_list"),
    *(
        "deployment_id",
        "success_callback",
        "callbacks",
        "baseURL",
        "litellm_metadata",
        "draft_model",
        "adapters",
        "prompt",
    ),
    *(
        "router_settings",
        "guardrails",
        "plugins",
        "web_search_options",
        "provider",
        "function_call",
        "no-log",
        "a b",
        "",
    ),
    *("kv_transfer_params", "bootstrap_host", "custom_logit_processor", "lora_path", "drop.params", "모델"),
]
ALLOWED_PARAMS = [
    *("top_k", "min_p", "typical_p", "repetition_penalty", "repeat_penalty", "chat_template_kwargs", "enable_thinking"),
    *("ignore_eos", "min_tokens", "guided_json", "grammar", "mirostat", "dry_multiplier", "cache_prompt", "id_slot"),
    *("xtc_probability", "thinking_budget", "samplers", "logit_bias_", "skip_special_tokens", "num_draft_tokens"),
]


def test_constants_lead_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"

    def faults(mode: str, line: str) -> list[str]:
        file.write_text(f"[models.{mode}.params]\n{line}\n", encoding="utf-8")
        try:
            load(file, {"LLM_ROUTER_URL": URL}, {})
        except SettingsError as error:
            return error.faults
        return []

    for mode in ("daily", "deep"):
        for name in REFUSED_PARAMS:
            [fault] = faults(mode, f'"{name}" = "x"')
            assert fault.startswith(f"models.{mode}.params.{name}: "), name
        for name in ALLOWED_PARAMS:
            assert faults(mode, f'"{name}" = 1') == [], name
    for value in ("inf", "nan", "1979-05-27", "[1, inf]", "{ a = { b = -inf } }", "07:32:00", "1" + "0" * 30):
        [fault] = faults("deep", f"top_k = {value}")
        assert "JSON" in fault, value
    [fault] = faults("deep", "top_k = 1\n[models.daily]\nparams = 5")
    assert "models.daily.params" in fault
    done = run("check", EIDPROXY_MODELS_DAILY_PARAMS="{}")
    assert done.returncode == 78
    assert "EIDPROXY_MODELS_DAILY_PARAMS" in done.stderr


@pytest.mark.parametrize(
    "networks", ["0.0.0.0/0", "8.8.8.0/24", "169.254.0.0/16", "10.0.0.0/7", "x", "::/0", "10.0.0.1/8"]
)
def test_networks_only_narrow(networks: str) -> None:
    done = run("check", EIDPROXY_ROUTER_ALLOWED_NETWORKS=networks)
    assert done.returncode == 78
    assert "router.allowed_networks" in done.stderr


def test_blocked_at_start() -> None:
    for url in ("http://8.8.8.8:80", "http://169.254.169.254"):
        for command in ("serve", "check"):
            done = run(command, LLM_ROUTER_URL=url)
            assert done.returncode == 78
            assert "egress_blocked" in done.stderr
    done = run("check", LLM_ROUTER_URL=URL, EIDPROXY_ROUTER_ALLOWED_NETWORKS="10.0.0.0/8")
    assert done.returncode == 78


def test_own_address_is_no_router() -> None:
    port = free_port()
    done = run("serve", LLM_ROUTER_URL=f"http://127.0.0.1:{port}", EIDPROXY_SERVER_PORT=str(port))
    assert done.returncode == 78
    assert "egress_blocked" in done.stderr


def test_open_host_needs_a_key(router: Router) -> None:
    done = run("serve", EIDPROXY_SERVER_HOST="0.0.0.0", EIDPROXY_SERVER_PORT=str(free_port()))
    assert done.returncode == 78
    assert "server.api_key" in done.stderr
    with Proxy(router, EIDPROXY_SERVER_HOST="0.0.0.0", EIDPROXY_SERVER_API_KEY=SECRET, canaries=[SECRET]) as proxy:
        assert proxy.get("/v1/models").status == 200
        check_refusal(ask(proxy, "GET", "/v1/models"), 401, "unauthorized")


def test_one_worker(router: Router) -> None:
    done = run("serve", "--workers", "2")
    assert done.returncode == 78
    assert run("serve", WEB_CONCURRENCY="4").returncode == 78


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ("router.first_event_seconds", {"ROUTER_FIRST_EVENT_SECONDS": 400}),
        ("router.first_event_seconds", {"STREAM_DEADLINE_SECONDS": 80, "ROUTER_READ_TIMEOUT_SECONDS": 80}),
        ("router.read_timeout_seconds", {"ROUTER_READ_TIMEOUT_SECONDS": 400}),
        ("gate.settle_seconds", {"GATE_SETTLE_SECONDS": 301, "GATE_AFTER_LEAVE": "settle"}),
        ("router.wedge_retry_seconds", {"ROUTER_WEDGE_RETRY_SECONDS": 61}),
        (None, {}),
        (None, {"ROUTER_FIRST_EVENT_SECONDS": 300}),
        (None, {"GATE_SETTLE_SECONDS": 301}),  # nothing settles
        (None, {"ROUTER_WEDGE_RETRY_SECONDS": 61, "ROUTER_WEDGE_AFTER": 0}),
    ],
)
def test_check_tells_of_settings_that_contradict_each_other(told: str | None, settings: dict[str, object]) -> None:
    environ = {"LLM_ROUTER_URL": URL, **{f"EIDPROXY_{name}": str(value) for name, value in settings.items()}}
    found = [name for name, _ in contradictions(load(None, environ, {}).settings)]
    assert found == ([told] if told else [])
