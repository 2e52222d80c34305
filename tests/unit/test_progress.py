"""progress: what a caller that opted in is told, and when (contract, 4)."""

from __future__ import annotations

import asyncio

from eidproxy.relay.progress import Progress, ProgressFields
from eidproxy.relay.stream import Stage
from tests.lab.loops import played_virtually


class Told:
    """One caller, what it was told, and where it stands."""

    def __init__(self) -> None:
        self.news: list[ProgressFields] = []
        self.place: tuple[int, float | None] = (3, None)
        self.progress = Progress(asyncio.get_running_loop(), self.news.append, lambda: self.place)

    def moves(self, position: int, wait_seconds: float | None) -> list[ProgressFields]:
        """What is told when the place may have changed."""
        before = len(self.news)
        self.place = (position, wait_seconds)
        self.progress.report_position()
        return self.news[before:]


def queued(position: int, eta_seconds: int | None) -> ProgressFields:
    return {"state": "queued", "position": position, "eta_seconds": eta_seconds}


@played_virtually
async def test_place_and_estimate_only_fall() -> None:
    told = Told()
    assert told.moves(3, None) == [queued(3, None)]
    assert told.moves(2, 20.0) == [queued(2, 20)]
    assert told.moves(3, 60.0) == [], "a newcomer of a better class pushed it back: it is told nothing"
    assert told.moves(1, 30.0) == [queued(1, 20)], "an estimate that rises is told as it was"
    assert told.moves(0, None) == [], "it has a slot: the relay says the rest"
    told.progress.stop()


@played_virtually
async def test_a_place_further_back_is_told_as_the_best_so_far() -> None:
    told = Told()
    told.moves(2, 20.0)
    told.place = (4, 40.0)
    await asyncio.sleep(10.0)
    assert told.news[1:] == [queued(2, 20)]
    told.progress.stop()


@played_virtually
async def test_news_are_repeated_every_ten_seconds_until_the_answer_speaks() -> None:
    told = Told()
    told.moves(1, 8.0)
    await asyncio.sleep(25.0)
    assert told.news == [queued(1, 8)] * 3
    loop = asyncio.get_running_loop()
    told.progress.report_upstream(loop.time())
    await asyncio.sleep(15.0)
    told.progress.report_stage(Stage.THINKING, loop.time())
    told.progress.report_stage(Stage.THINKING, loop.time())
    await asyncio.sleep(11.0)
    told.progress.report_stage(Stage.WAITING, loop.time())
    told.progress.report_stage(Stage.SPEAKING, loop.time())
    await asyncio.sleep(60.0)
    assert [(news["state"], news["elapsed_seconds"]) for news in told.news[3:]] == [
        ("upstream", 0),
        ("upstream", 10),
        ("thinking", 0),
        ("thinking", 10),
    ]
