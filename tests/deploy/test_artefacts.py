"""Every artefact in the eyes of its own tool, and the few facts that no tool knows of."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eidproxy.config import FIELDS, load
from tests.deploy.files import DEPLOY, ROOT, documents, fenced, passed, run
from tests.lab.client import CHAT, RawClient, ask, chat, request_bytes
from tests.lab.proxy import Proxy
from tests.lab.router import Router
from tests.lab.script import stream
from tests.lab.stream import told
from tests.lab.tools import need, until, without

DRAIN_SECONDS = 60
"""The default of server.drain_seconds: every supervisor must wait longer before it kills."""

COMPOSE_ENV = {"APP_IMAGE": "example.org/app:1.0", "ROUTER_IMAGE": "example.org/router:1.0"}
KNOWN = {field.env for field in FIELDS} | {f"{field.env}_FILE" for field in FIELDS if field.secret}
YAML_STYLE = "{extends: default, rules: {line-length: {max: 140}, document-start: disable, " + (
    "comments: {min-spaces-from-content: 1}}}"
)
KUBERNETES = ["kubernetes.yaml", "kubernetes.replicas.yaml"]


def compose(*names: str) -> Any:
    """What Compose makes of these files, laid over each other."""
    (program,) = need("docker-compose")
    files = [word for name in names for word in ("-f", str(DEPLOY / name))]
    done = run(program, *files, "config", "--format", "json", env=COMPOSE_ENV)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def environment_is_valid(environ: dict[str, str], tmp_path: Path) -> None:
    """eidproxy itself accepts these settings; secrets that are files elsewhere are stood in for."""
    stand_in = tmp_path / "secret"
    stand_in.write_text("redis://eidproxy:stand-in@127.0.0.1:6379/0")
    given = {name: str(stand_in) if name.endswith("_FILE") else value for name, value in environ.items()}
    assert not {name for name in given if name.startswith("EIDPROXY_")} - KNOWN
    load(None, given, {})


# --- Image ---------------------------------------------------------------------------------------------------------


def test_dockerfile_has_no_finding_of_hadolint() -> None:
    (hadolint,) = need("hadolint")
    assert passed(hadolint, "--failure-threshold", "style", "Dockerfile") == ""


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The control: the linter is awake."""
    (hadolint,) = need("hadolint")
    bad = tmp_path / "Dockerfile"
    bad.write_text((ROOT / "Dockerfile").read_text("utf-8").replace("--no-cache-dir ", "").replace("WORKDIR /src", ""))
    assert run(hadolint, bad).returncode != 0


def test_image_names_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in (ROOT / "Dockerfile").read_text("utf-8")
    assert compose("compose.yaml")["services"]["eidproxy"]["image"] == f"eidproxy:{version}"
    for name in KUBERNETES:
        assert f"image: eidproxy:{version}" in (DEPLOY / name).read_text("utf-8")


# --- Edges ---------------------------------------------------------------------------------------------------------


def test_caddyfile_is_valid_and_formatted(tmp_path: Path) -> None:
    (caddy,) = need("caddy")
    home = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    assert "Valid configuration" in passed(caddy, "validate", "--config", "Caddyfile", env=home)
    shown = run(caddy, "fmt", "--diff", "Caddyfile")
    assert (shown.returncode, [line for line in shown.stdout.splitlines() if line[:1] in "+-"]) == (0, [])


def test_caddyfile_leaves_event_streams_alone() -> None:
    (caddy,) = need("caddy")
    config = json.loads(run(caddy, "adapt", "--config", "Caddyfile").stdout)
    text = json.dumps(config)
    assert "flush_interval" not in text
    assert "request_buffers" not in text  # a prompt is passed on as it comes
    encoders = [handler for handler in _handlers(config) if handler["handler"] == "encode"]
    assert encoders
    for encoder in encoders:
        types = encoder["match"]["headers"]["Content-Type"]
        assert types
        assert not [kind for kind in types if "text/event-stream".startswith(kind.rstrip("*"))]


def _handlers(node: Any) -> list[Any]:
    """Every handler in a configuration of Caddy."""
    if isinstance(node, list):
        return [found for item in node for found in _handlers(item)]
    if isinstance(node, dict):
        own = [node] if "handler" in node else []
        return own + [found for item in node.values() for found in _handlers(item)]
    return []


# --- Compose -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("compose.yaml",), ("compose.yaml", "compose.replicas.yaml")], ids=["one", "three"])
def test_compose_confines_every_service(names: tuple[str, ...], tmp_path: Path) -> None:
    config = compose(*names)
    for name, service in config["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
        assert not service.get("privileged"), name
    services, networks = config["services"], config["networks"]
    assert networks["llm"]["internal"] is True
    assert {name for name, service in services.items() if "llm" in service["networks"]} == {"eidproxy", "router"}
    # Nothing that eidproxy is attached to leads out: internal, or a bridge whose packets have no way back.
    for name in services["eidproxy"]["networks"]:
        options = networks[name].get("driver_opts", {})
        assert networks[name].get("internal") or options["com.docker.network.bridge.enable_ip_masquerade"] == "false"
    assert _seconds(services["eidproxy"]["stop_grace_period"]) > DRAIN_SECONDS
    environment_is_valid(services["eidproxy"]["environment"], tmp_path)
    allowed = services["eidproxy"]["environment"]["EIDPROXY_ROUTER_ALLOWED_NETWORKS"]
    assert allowed == networks["llm"]["ipam"]["config"][0]["subnet"]


def test_compose_three_replicas_share_a_gate() -> None:
    config = compose("compose.yaml", "compose.replicas.yaml")
    eidproxy, valkey = config["services"]["eidproxy"], config["services"]["valkey"]
    assert eidproxy["deploy"]["replicas"] == 3
    assert [port["published"] for port in eidproxy["ports"]] == ["8790-8792"]
    assert "EIDPROXY_GATE_URL_FILE" in eidproxy["environment"]
    assert list(valkey["networks"]) == ["gate"]
    assert config["networks"]["gate"]["internal"] is True
    assert "ports" not in valkey


def test_every_secret_of_compose_is_made_for_its_one_reader(tmp_path: Path) -> None:
    """Compose binds the file as it is: its mode on the host is its mode inside. The documented commands are run."""
    config = compose("compose.yaml", "compose.replicas.yaml")
    users = {"eidproxy": 65532, "app": os.getuid(), "valkey": 999}
    readers: dict[str, set[int]] = {}
    for name, service in config["services"].items():
        for secret in service.get("secrets", []):
            readers.setdefault(Path(config["secrets"][secret["source"]]["file"]).name, set()).add(users[name])
    assert all(len(found) == 1 for found in readers.values()), readers
    if os.geteuid() != 0:
        pytest.skip("only root may give a file to another user")
    blocks = re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text("utf-8"), re.DOTALL)
    made = "".join(line + "\n" for block in blocks if "deploy/secrets" in block for line in _commands(block))
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    run("sh", "-euc", f'sudo() {{ "$@"; }}; APP_UID={os.getuid()}\n{made}', cwd=tmp_path).check_returncode()
    folder = tmp_path / "deploy/secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = {file.name: (stat.S_IMODE(file.stat().st_mode), {file.stat().st_uid}) for file in folder.iterdir()}
    assert found == {name: (0o400, uids) for name, uids in readers.items()}
    assert (folder / "app_api_key").read_text() == (folder / "server_api_key").read_text()
    assert "<password>" not in (folder / "valkey_users").read_text()


def _commands(block: str) -> Iterator[str]:
    """The commands of a block that make secrets."""
    for line in block.splitlines():
        if ("deploy/secrets" in line and not line.startswith("curl")) or line.startswith("password="):
            yield line


def _seconds(duration: str) -> int:
    parts = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert parts is not None
    return 60 * int(parts[1] or 0) + int(parts[2] or 0)


def test_valkey_settings_serve_a_gate_and_nothing_else(router: Router, tmp_path: Path) -> None:
    """A real server takes the file and its users; eidproxy's own may do what the gate needs and no more."""
    server, client = need("redis-server", "redis-cli")
    users = tmp_path / "users"
    users.write_text((DEPLOY / "valkey_users.example").read_text("utf-8").replace("<password>", "secret"))
    socket = tmp_path / "valkey.sock"
    text = (DEPLOY / "valkey.conf").read_text("utf-8").replace("/run/secrets/valkey_users", str(users))
    config = tmp_path / "valkey.conf"
    config.write_text(text.replace("port 6379", f"port 0\nunixsocket {socket}"))
    with subprocess.Popen([server, str(config)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("ready to accept connections" in line.lower() for line in process.stdout)

            def said(*words: str) -> str:
                return run(client, "-s", socket, "--no-auth-warning", *words).stdout.strip()

            own = ("--user", "eidproxy", "--pass", "secret")
            assert said("ping").startswith("NOAUTH")
            assert said(*own, "ping") == "PONG"
            refused = [("config", "get", "*"), ("flushall",), ("shutdown",), ("keys", "*"), ("hset", "other", "a", "1")]
            for words in (*refused, ("acl", "list"), ("monitor",), ("replicaof", "127.0.0.1", "1")):
                assert said(*own, *words).startswith("NOPERM"), words

            gate: dict[str, Any] = {
                "EIDPROXY_GATE_URL": f"unix://eidproxy:secret@{socket}",
                "EIDPROXY_GATE_LEASE_SECONDS": 3,  # long enough for a busy machine: none is lost
            }
            with Proxy(router, **gate) as one, Proxy(router, **gate) as two:
                router.enqueue(stream(gate="held"), stream())
                with RawClient(one) as holder, RawClient(two) as waiter:
                    holder.send(request_bytes("POST", CHAT, chat("daily")))
                    router.wait_for(lambda: router.waiting("held") == 1)
                    waiter.send(request_bytes("POST", CHAT, chat("daily")))
                    until(lambda: two.status()["gate"]["waiting"])
                    router.release("held")
                    for caller in (holder, waiter):
                        assert caller.read_head().status == 200
                        assert told(caller.read_body()).done
                assert one.metric("eidproxy_gate_backend_up") == 1
                assert one.metric("eidproxy_gate_lease_lost_total") == 0
            assert (router.posts, router.max_concurrent) == (2, 1)
            # Nothing that the gate ever tried was denied.
            assert "NOPERM" not in said(*own, "info", "errorstats").replace("errorstat_NOPERM:count=8", "")
        finally:
            process.terminate()
            process.communicate(timeout=10)
    assert process.returncode == 0


# --- systemd and launchd -------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The shipped unit, with a program that exists on this machine."""
    text = (DEPLOY / "eidproxy.service").read_text("utf-8")
    assert text.count("/opt/eidproxy/bin/eidproxy ") == 1
    path = tmp_path / "eidproxy.service"
    path.write_text(text.replace("/opt/eidproxy/bin/eidproxy ", f"{shutil.which('true')} "))
    return path


def test_systemd_accepts_the_unit(unit: Path) -> None:
    (analyze,) = need("systemd-analyze")
    assert passed(analyze, "verify", unit) == ""


def test_systemd_rates_the_unit_as_safe(unit: Path) -> None:
    (analyze,) = need("systemd-analyze")
    said = passed(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", unit)
    print(said.splitlines()[-1])
    # The control: without its confinement the same unit is above the threshold.
    bare = [line for line in unit.read_text("utf-8").splitlines() if not line.startswith(("Protect", "Restrict"))]
    unit.write_text("\n".join(bare) + "\n")
    assert run(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", unit).returncode != 0


def test_unit_gives_the_drain_its_time() -> None:
    options = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "eidproxy.service").read_text("utf-8"), re.MULTILINE))
    assert int(options["TimeoutStopSec"]) > DRAIN_SECONDS
    assert options["RestartPreventExitStatus"] == "78"


def test_unit_allows_every_system_call_that_is_made(router: Router, tmp_path: Path) -> None:
    """Start, a stream, a scrape, a look-up and a drain under strace: no call is outside the unit's filters."""
    strace, analyze = need("strace", "systemd-analyze")
    trace = tmp_path / "trace"
    named = f"http://localhost:{router.port}"
    with Proxy(named, prefix=(strace, "-D", "-f", "-qq", "-o", str(trace)), ready_timeout=60) as proxy:
        assert ask(proxy, "POST", CHAT, chat("daily")).status == 200
        assert ask(proxy, "POST", CHAT, chat("deep", stream=False)).status == 200
        assert proxy.get("/metrics").status == 200
        assert proxy.get("/readyz").status == 200
        proxy.terminate()
        assert proxy.wait(30) == 0
    made = trace.read_text(errors="replace")
    called = set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z0-9_]+)(?:\(| resumed)", made, re.MULTILINE))
    assert {"connect", "execve", "futex"} <= called
    options = (DEPLOY / "eidproxy.service").read_text("utf-8").splitlines()
    filters = [line.removeprefix("SystemCallFilter=") for line in options if line.startswith("SystemCallFilter=")]
    assert filters == ["@system-service", "~@privileged @resources"]
    allowed = _calls(analyze, "@system-service") - _calls(analyze, "@privileged") - _calls(analyze, "@resources")
    # systemd itself makes the first execve; @default is always allowed.
    assert called - allowed - _calls(analyze, "@default") == set()
    # MemoryDenyWriteExecute, RestrictAddressFamilies
    assert not re.search(r"PROT_WRITE\|PROT_EXEC", made)
    assert set(re.findall(r"\bsocket(?:pair)?\((AF_\w+)", made)) <= {"AF_INET", "AF_INET6", "AF_UNIX"}


def _calls(analyze: str, group: str) -> set[str]:
    """The system calls of a group of systemd's, those of the groups inside it too."""
    found: set[str] = set()
    for line in passed(analyze, "syscall-filter", "--no-pager", group).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= _calls(analyze, word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def test_credentials_of_the_unit_are_names_that_eidproxy_reads(tmp_path: Path) -> None:
    """`LoadCredential=eidproxy:DIR` makes each file of DIR a credential called eidproxy_<file>."""
    text = (DEPLOY / "eidproxy.service").read_text("utf-8")
    assert "LoadCredential=eidproxy:/etc/eidproxy/credentials" in text.splitlines()
    (tmp_path / "eidproxy_server_api_key").write_text("k" * 32 + "\n")
    found = load(DEPLOY / "eidproxy.toml", {"CREDENTIALS_DIRECTORY": str(tmp_path)}, {})
    assert found.settings.server.api_key == "k" * 32


def test_newsyslog_rotates_the_log_of_launchd() -> None:
    """By the columns of newsyslog.conf(5): file, owner, mode, archives kept, size in KiB, when, flags."""
    job = plistlib.loads((DEPLOY / "com.eidproxy.plist").read_bytes())
    text = (DEPLOY / "newsyslog.eidproxy.conf").read_text("utf-8")
    [line] = [line for line in text.splitlines() if line and not line.startswith("#")]
    file, owner, mode, kept, size, when, flags = line.split()
    assert file == job["StandardErrorPath"]
    assert owner == f"{job['UserName']}:"
    assert int(mode, 8) & 0o137 == 0
    assert int(kept) * int(size) <= 200 * 1024
    assert when == "*"
    # Without a signal, since eidproxy follows by itself; not compressed, since it may write on for a moment.
    assert flags == "N"


def test_launchd_property_list() -> None:
    job = plistlib.loads((DEPLOY / "com.eidproxy.plist").read_bytes())
    assert job["Label"] == "com.eidproxy"
    assert job["ProgramArguments"][:2] == ["/opt/eidproxy/bin/eidproxy", "serve"]
    assert job["UserName"] == "_eidproxy"
    assert job["KeepAlive"] is True
    assert job["ExitTimeOut"] > DRAIN_SECONDS
    assert job["Umask"] == 0o077
    assert job["HardResourceLimits"]["Core"] == 0
    # launchd ignores a key it does not know without a word, so the spelling is held against its manual page.
    assert set(job) == {
        "Label",
        "ProgramArguments",
        "UserName",
        "RunAtLoad",
        "KeepAlive",
        "ThrottleInterval",
        "ExitTimeOut",
        "ProcessType",
        "Umask",
        "SoftResourceLimits",
        "HardResourceLimits",
        "WorkingDirectory",
        "StandardOutPath",
        "StandardErrorPath",
    }


def test_example_settings_are_accepted() -> None:
    found = load(DEPLOY / "eidproxy.toml", {}, {}).settings
    assert (found.router.url, found.server.host, found.server.port) == ("http://127.0.0.1:4000", "127.0.0.1", 8790)


# --- Kubernetes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_accepts_the_manifests(name: str, version: str) -> None:
    (validate,) = need("kubernetes-validate")
    done = run(validate, "--strict", "-k", version, DEPLOY / name)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert said.count(" passed for resource ") == len(documents(DEPLOY / name)), said


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_confines_every_pod(name: str, tmp_path: Path) -> None:
    parts = documents(DEPLOY / name)
    pods = [part["spec"]["template"] for part in parts if part["kind"] == "Deployment"]
    policies = [part["spec"] for part in parts if part["kind"] == "NetworkPolicy"]
    assert pods
    for pod in pods:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "a Service would set EIDPROXY_… names that are not settings"
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsUser"] > 0
            assert container["resources"]["limits"]["memory"]
        # Denied both ways, and allowed only to addresses and pods that are named.
        labels = pod["metadata"]["labels"]
        (policy,) = [policy for policy in policies if policy["podSelector"]["matchLabels"] == labels]
        assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
        for rule in policy.get("egress", []):
            assert rule["ports"]
            for peer in rule["to"]:
                assert peer.get("ipBlock", {}).get("cidr", "/32").endswith("/32")


def test_kubernetes_sidecar_is_native_and_drains() -> None:
    deployment, _policy = documents(DEPLOY / "kubernetes.yaml")
    spec = deployment["spec"]["template"]["spec"]
    (sidecar,) = spec["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert spec["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    probes = {name: sidecar[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_kubernetes_three_replicas_share_a_gate() -> None:
    parts = {(part["kind"], part["metadata"]["name"]): part for part in documents(DEPLOY / "kubernetes.replicas.yaml")}
    spec = parts["Deployment", "eidproxy"]["spec"]
    assert spec["replicas"] == 3
    (container,) = spec["template"]["spec"]["containers"]
    environ = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert "EIDPROXY_GATE_URL_FILE" in environ
    # No look-up is needed: the address of Valkey's Service is fixed, and the commands put it into the URL.
    address = parts["Service", "valkey"]["spec"]["clusterIP"]
    assert f"@{address}:6379/0" in (DEPLOY / "kubernetes.replicas.yaml").read_text("utf-8")
    assert f"@{address}:6379/0" in (DEPLOY / "README.md").read_text("utf-8")
    assert parts["Deployment", "valkey"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_settings_are_accepted(name: str, tmp_path: Path) -> None:
    deployment = documents(DEPLOY / name)[0]
    spec = deployment["spec"]["template"]["spec"]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    (container,) = [container for container in containers if container["name"] == "eidproxy"]
    assert spec["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    values = {entry["name"]: entry.get("value", "10.1.2.3") for entry in container["env"]}
    names = list(values)
    # $(POD_IP) is only filled in from what stands above it.
    assert names.index("POD_IP") < names.index("EIDPROXY_SERVER_ALLOWED_HOSTS")
    filled = {name: value.replace("$(POD_IP)", values["POD_IP"]) for name, value in values.items()}
    environment_is_valid(filled, tmp_path)


# --- nftables ------------------------------------------------------------------------------------------------------


def test_nftables_rules_let_the_service_reach_the_router_alone(tmp_path: Path) -> None:
    """In a network namespace: the service's user reaches the router and answers callers; nothing else leaves."""
    nft, unshare, ip = need("nft", "unshare", "ip")
    if os.geteuid() != 0:
        without("only root may load rules into a namespace")
    text = (DEPLOY / "nftables.conf").read_text("utf-8")
    assert text.count('define eidproxy_user = "eidproxy"') == 1
    # The user need not exist here, so it is given by number.
    rules = tmp_path / "nftables.conf"
    rules.write_text(text.replace('define eidproxy_user = "eidproxy"', "define eidproxy_user = 64321"))
    script = tmp_path / "inside.sh"
    script.write_text(_INSIDE.format(nft=nft, ip=ip, rules=rules, python=sys.executable, uid=64321))
    said = passed(unshare, "--net", "sh", "-eu", script)
    assert sorted(said.splitlines()) == [
        "another-host refused",
        "another-port refused",
        "another-user open",
        "caller open",
        "router open",
    ]
    # The control: without the rules the same user gets everywhere.
    script.write_text(script.read_text().replace(f"{nft} -f", ": -f"))
    assert "refused" not in passed(unshare, "--net", "sh", "-eu", script)


_INSIDE = """\
{ip} link set lo up
{ip} address add 192.168.1.20/32 dev lo
{ip} address add 192.168.1.21/32 dev lo
{nft} -f {rules}
{nft} -f {rules}
{python} -I - <<'END'
import errno, os, socket

"imported now, since the service's user may not read the library".encode("idna")
root_has = [socket.create_server(("0.0.0.0", port)) for port in (4000, 4001)]

def dial(name, host, port):
    try:
        socket.create_connection((host, port), 5).close()
        print(name, "open", flush=True)
    except OSError as error:
        print(name, "refused" if error.errno == errno.EHOSTUNREACH else error, flush=True)

dial("another-user", "192.168.1.21", 4001)
ready, tell = os.pipe()
if os.fork():
    os.read(ready, 1)
    dial("caller", "127.0.0.1", 8790)
    os.wait()
else:
    os.setgid({uid})
    os.setuid({uid})
    service_has = socket.create_server(("127.0.0.1", 8790))
    os.write(tell, b".")
    service_has.accept()[0].close()
    dial("router", "192.168.1.20", 4000)
    dial("another-port", "192.168.1.20", 4001)
    dial("another-host", "192.168.1.21", 4000)
END
"""


# --- Style ---------------------------------------------------------------------------------------------------------


def test_yaml_has_no_finding_of_yamllint() -> None:
    (yamllint,) = need("yamllint")
    files = sorted([*DEPLOY.glob("*.yaml"), *DEPLOY.glob("*.yml"), *ROOT.glob(".github/workflows/*.yml")])
    assert len(files) >= 8
    assert passed(yamllint, "--strict", "-d", YAML_STYLE, *files) == ""


def test_the_workflow_covers_the_systems_and_the_pythons_that_people_have() -> None:
    [workflow] = documents(ROOT / ".github/workflows/ci.yml")
    whole, test = workflow["jobs"]["whole"], workflow["jobs"]["test"]
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    pythons = test["strategy"]["matrix"]["python"]
    assert oldest == f">={pythons[0]}"
    assert pythons == [f"3.{minor}" for minor in range(11, 11 + len(pythons))]
    assert {system.partition("-")[0] for system in test["strategy"]["matrix"]["system"]} == {"ubuntu", "macos"}
    assert ".ci/run" in [step.get("run") for step in whole["steps"]]
    assert [step["run"].split()[:2] for step in test["steps"] if "run" in step] == [["make", "test"], ["make", "demo"]]


def test_shell_has_no_finding_of_shellcheck(tmp_path: Path) -> None:
    """Scripts of the repository, and the commands that the documents of deploy/ tell people to type."""
    (shellcheck,) = need("shellcheck")
    tracked = run("git", "ls-files", "-z").stdout.split("\0")
    files = [ROOT / name for name in tracked if name and _is_shell(ROOT / name)]
    for document in ("README.md", "clients.md", "routers.md"):
        for number, block in enumerate(fenced(DEPLOY / document, "sh")):
            path = tmp_path / f"{document}.{number}.sh"
            path.write_text("#!/bin/sh\n" + block)
            files.append(path)
    assert files
    # SC1091: a file to be sourced on the reader's machine. SC2034: a variable that the next block uses.
    assert passed(shellcheck, "--exclude=SC1091,SC2034", *files) == ""


def _is_shell(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(rb"#!\s*/(usr/)?bin/(env )?(ba)?sh\b", file.readline()) is not None


def test_every_alarm_is_explained() -> None:
    """deploy/README.md has a line for each alarm, and none for an alarm that is gone."""
    groups = documents(DEPLOY / "eidproxy.rules.yml")[0]["groups"]
    alarms = {rule["alert"] for group in groups for rule in group["rules"]}
    told = set(re.findall(r"^\| `(Eidproxy\w+)` \|", (DEPLOY / "README.md").read_text("utf-8"), re.MULTILINE))
    assert told == alarms


def test_every_file_is_named_in_the_readme() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    unnamed = [path.name for path in DEPLOY.iterdir() if path.suffix != ".md" and f"`{path.name}`" not in text]
    assert unnamed == []
