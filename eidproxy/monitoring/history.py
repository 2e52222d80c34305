"""The last five minutes, a row for each five seconds, so that a view shows them as soon as it is opened.

    history.sample(waiting)     # each five seconds
    history.rows                # for `/status`

A row is the difference between two snapshots of histograms that are counted anyway, so a request costs nothing more.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from eidproxy.monitoring.metrics import Distribution
from eidproxy.monitoring.status import ROWS, HistoryRow, Spread


class _Snapshot(NamedTuple):
    counts: tuple[int, ...]
    seconds: float


class _Trend:
    """One histogram over time: a snapshot (`_Snapshot`) for each row, and one more before the first."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._snapshots = deque([self._take_snapshot()], maxlen=ROWS + 1)

    def sample(self) -> Spread | None:
        """Take a snapshot and return the newest row; None when all rows are empty.

        Count and mean are those of the newest five seconds; the percentile is that of all rows together.
        """
        now, before = self._take_snapshot(), self._snapshots[-1]
        self._snapshots.append(now)
        window_counts = [new - old for new, old in zip(now.counts, self._snapshots[0].counts, strict=True)]
        if not any(window_counts):
            return None
        count = sum(now.counts) - sum(before.counts)
        mean = round((now.seconds - before.seconds) / count, 4) if count else None
        return Spread(count, mean, round(quantile(0.95, self._distribution.bounds, window_counts), 4))

    def _take_snapshot(self) -> _Snapshot:
        return _Snapshot(tuple(self._distribution.counts), self._distribution.sum)


class History:
    """The rows of `/status`. The application calls `sample` each `status.ROW_SECONDS`."""

    def __init__(self, gate_wait: Mapping[str, Distribution], first_token: Mapping[str, Distribution]) -> None:
        self.rows: deque[HistoryRow] = deque(maxlen=ROWS)
        self._gate_wait = {name: _Trend(distribution) for name, distribution in gate_wait.items()}
        self._first_token = {name: _Trend(distribution) for name, distribution in first_token.items()}

    def sample(self, waiting: int) -> None:
        """Add the row that ends now."""
        self.rows.append(
            HistoryRow(waiting, _sample_all(self._gate_wait.items()), _sample_all(self._first_token.items()))
        )


def _sample_all(trends: Iterable[tuple[str, _Trend]]) -> dict[str, Spread]:
    spreads = {name: trend.sample() for name, trend in trends}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def quantile(fraction: float, bounds: tuple[float, ...], counts: list[int]) -> float:
    """Return the value below which `fraction` of the values lie, as `histogram_quantile` of Prometheus does.

    `counts` has one entry for each upper bound and one for the values above the last; a quantile among those is
    returned as the last bound. At least one value must have been counted.
    """
    cumulative = list(accumulate(counts))
    rank = fraction * cumulative[-1]
    at = bisect_left(cumulative, rank)
    if at == len(bounds):
        return bounds[-1]
    low = bounds[at - 1] if at else 0.0
    before = cumulative[at - 1] if at else 0
    return low + (bounds[at] - low) * (rank - before) / counts[at]
