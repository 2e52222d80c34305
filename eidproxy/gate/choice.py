"""Which gate: one in the process, or one in a store that replicas share, by `gate.url`.

A gate of another kind is a module of its own and some lines here: its URL, whether other processes share it, how it is
built, how it is checked.
"""

import importlib.util
from collections.abc import Callable, Iterator

from eidproxy.gate import Gate, GateTerms
from eidproxy.gate.address import gate_address
from eidproxy.gate.admission import AdmissionQueue
from eidproxy.gate.local import LocalGate
from eidproxy.monitoring.metrics import Metrics


def url_faults(url: str) -> Iterator[str]:
    """Yield what is wrong with `gate.url`, in words for the operator that do not repeat it."""
    try:
        gate_address(url)
    except ValueError as error:
        yield str(error)
    if importlib.util.find_spec("redis") is None:
        yield "needs redis-py; install eidproxy[redis]"


def is_shared(url: str | None) -> bool:
    """Return whether other processes share the gate that `gate.url` names."""
    return url is not None


def build_gate(terms: GateTerms, metrics: Metrics, on_store_change: Callable[[Exception | None], None]) -> Gate:
    """Return the gate before `daily`.

    `on_store_change` is called with the reason when the store of a shared gate stops serving, and with None when it
    serves again.
    """
    if terms.url is None:
        queue = AdmissionQueue(terms.capacity, terms.max_waiting, terms.aging_seconds)
        return LocalGate(queue, metrics, terms.wait_timeout_seconds, terms.max_hold_seconds)
    # Imported here, so that only a shared gate needs the client of its store (redis-py).
    from eidproxy.gate.shared_factory import build_shared_gate

    return build_shared_gate(terms, metrics, on_store_change)


async def check_gate(terms: GateTerms) -> tuple[list[str], str | None]:
    """Return facts of the gate for the operator, and why it cannot serve now (None if it can)."""
    if terms.url is None:
        return ["in the process"], None
    from eidproxy.gate.shared_factory import check_store

    facts, fault = await check_store(terms)
    return [f"shared, {fact}" for fact in facts], fault
