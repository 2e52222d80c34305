from asyncio import Transport
from collections import deque
from collections.abc import Callable

class Poller:
    def __new__(cls, epoll: int, bounds: tuple[float, ...], max_armed: int, /) -> Poller: ...
    def serve(
        self, clock: Callable[[], float], on_readable: Callable[[list[int]], object], unserved: deque[int], /
    ) -> object: ...
    def arm(
        self,
        descriptor: int,
        caller: int,
        transport: Transport,
        template: tuple[bytes, ...],
        sent_at: float,
        budget: int,
        /,
    ) -> bool: ...
    def take(self, descriptor: int, /) -> tuple[int, int, int, float, float, list[int]] | None: ...
    def disarm(self, descriptor: int, /) -> tuple[bytes, int]: ...
