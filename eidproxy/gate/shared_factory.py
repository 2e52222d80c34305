"""How a shared gate is built from its terms, and how its store is checked."""

import asyncio
import ssl
from collections.abc import Callable

import httpx

from eidproxy.egress import EgressBlocked
from eidproxy.gate import GateTerms
from eidproxy.gate.address import gate_address
from eidproxy.gate.shared import RedisGate, call_seconds
from eidproxy.gate.store_client import StoreClient, addresses
from eidproxy.monitoring.metrics import Metrics

_RESOLVE_SECONDS = 5.0
"""Time limit for resolving the store's name in `check`."""


def build_client(terms: GateTerms) -> Callable[[RedisGate], StoreClient]:
    """Return a function that builds the store's client for a gate, whose `on_call_end` is called when a call ends."""
    address = gate_address(terms.url or "")
    tls = ssl.create_default_context(cafile=address.ca_file) if address.secure else None
    queue_terms = (
        round(terms.lease_seconds * 1e6),
        terms.capacity,
        terms.max_waiting,
        round(terms.aging_seconds * 1e6),
    )
    return lambda gate: StoreClient(
        address,
        address.egress,
        queue_terms,
        call_seconds=call_seconds(terms.lease_seconds),
        on_call_end=gate.on_call_end,
        tls=tls,
    )


def build_shared_gate(
    terms: GateTerms, metrics: Metrics, on_store_change: Callable[[Exception | None], None]
) -> RedisGate:
    """Return a gate in the store that `terms.url` names. To be built inside a running loop."""
    return RedisGate(
        build_client(terms),
        metrics,
        capacity=terms.capacity,
        max_waiting=terms.max_waiting,
        lease_seconds=terms.lease_seconds,
        wait_timeout_seconds=terms.wait_timeout_seconds,
        max_hold_seconds=terms.max_hold_seconds,
        on_availability_change=on_store_change,
    )


async def check_store(terms: GateTerms) -> tuple[list[str], str | None]:
    """Return what would be dialled, and why the store cannot serve now (None if it can). For `check`."""
    address = gate_address(terms.url or "")
    if address.path is not None:
        lines = [f"would open the socket {address.path}"]
    else:
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                found = await addresses(address)
        except EgressBlocked as blocked:
            return [], f"egress_blocked: {blocked.decision.address or address.host}: {blocked.decision.verdict}"
        except (httpx.TransportError, TimeoutError):
            return [], f"the name {address.host} cannot be resolved"
        lines = [f"would dial {dialled} port {address.port}" for dialled in found]
    faults: list[Exception | None] = []
    gate = build_shared_gate(terms, Metrics("check"), faults.append)
    served = await gate.available()
    await gate.aclose()
    if served:
        return [*lines, "the store serves"], None
    return lines, f"gate_unavailable: the store does not answer ({type(faults[-1]).__name__ if faults else 'silent'})"
