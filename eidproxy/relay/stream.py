"""One answer of the router, from the bytes of its body to the bytes for the caller: framing, filter, common case.

`feed` is what each read of a stream costs. Only this module knows that most reads are one event of a common shape,
which takes a short way through parser and filter with the same result.
"""

from enum import IntEnum, auto

from eidproxy.relay.chunk import Delta, Frames, Template, chunk_head
from eidproxy.relay.completion import Completion
from eidproxy.relay.sanitize import Sanitizer
from eidproxy.relay.sse import MAX_EVENT_BYTES, EventParser, EventTooLarge, whole_event
from eidproxy.vocabulary import Dropped, Stripped

DONE = b"data: [DONE]\n\n"
_MAX_STREAM_BYTES = 64 * 1024 * 1024
"""The most that is read of one answer. No model generates so much within the wall clock."""
_MAX_COMPLETION_CHARS = 4 * 1024 * 1024
"""The most that is held of an answer without `stream`: a thousand times what `max_tokens` allows."""


class Stage(IntEnum):
    """How far an answer has come."""

    WAITING = auto()
    """No good event has come: none with text, reasoning, a refusal, a call or a finish reason."""
    THINKING = auto()
    """Only reasoning has come."""
    SPEAKING = auto()
    FINISHED = auto()
    """A finish reason has come."""
    OVER = auto()
    """The router sent `[DONE]`, or the answer failed: nothing after that counts."""


_THINKING = Stage.THINKING
"""A global name for each event's comparison: looking up a member of an enumeration costs more than comparing it."""


class Stream:
    """The reader of one answer's body. After each `feed` its attributes say how far the answer has come.

    `completion` gathers the answer for a caller that did not ask for a stream; `feed` then returns nothing.
    """

    __slots__ = (
        "_bytes_read",
        "_common_events",
        "_frames",
        "_last_common_event",
        "_may_be_common",
        "_parser",
        "chunks",
        "completion",
        "failure",
        "parsed_events",
        "sanitizer",
        "stage",
    )

    def __init__(
        self, request_id: str, created: int, model: str, completion: Completion | None = None,
        max_event_bytes: int = MAX_EVENT_BYTES, *, counts_unknown: bool = True,
    ) -> None:  # fmt: skip
        """See `Sanitizer` for `counts_unknown`."""
        self.sanitizer = Sanitizer(request_id, counts_unknown=counts_unknown)
        self.completion = completion
        self._frames = Frames(chunk_head(request_id, created, model))
        self._parser = EventParser(max_event_bytes)
        self._bytes_read = 0
        self._common_events = 0
        self._last_common_event: bytes | None = None
        """The last event of the common shape that took the long way, for `template` when a read has several events."""
        self._may_be_common = False
        """Whether the next read may be one event of the common shape."""
        self.chunks = 0
        """How many chunks were passed to the caller or into the completion."""
        self.failure: str | None = None
        """Why the answer failed: the reason for the caller."""
        self.parsed_events = 0
        """How many data events took the long way."""
        self.stage = Stage.WAITING

    @property
    def comment(self) -> bytes:
        """The beginning of the last comment."""
        return self._parser.comment

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of one read and return the events for the caller."""
        self._bytes_read += len(data)
        if self._may_be_common and (event := whole_event(data, self._parser.max_event_bytes)) is not None:
            frame = self._frames.rebuild(event, self.stage is _THINKING)
            if frame is not None and self._bytes_read <= _MAX_STREAM_BYTES:
                self._common_events += 1
                self.chunks += 1
                return frame
        return self._feed_long_way(data)

    def template(self, data: bytes) -> Template | None:
        """Return the template of this stream's events, from one of the last read.

        None when the next event may have another shape, or a template cannot be proved.
        """
        if not self._may_be_common or self._parser.max_event_bytes < MAX_EVENT_BYTES:
            return None
        event = whole_event(data) or self._last_common_event
        return None if event is None else self._frames.template(event)

    @property
    def budget(self) -> int:
        """How many more bytes of the answer may be read."""
        return _MAX_STREAM_BYTES - self._bytes_read

    def count_passed(self, events: int, size: int) -> None:
        """Count events that a shortcut rebuilt by their template, and their size in bytes."""
        self._bytes_read += size
        self._common_events += events
        self.chunks += events

    def _feed_long_way(self, data: bytes) -> bytes:
        sanitizer, frames = self.sanitizer, self._frames
        sent: list[bytes] = []
        is_too_large = False
        try:
            events = self._parser.feed(data)
        except EventTooLarge as cut:
            events, is_too_large = cut.events, True  # whole events before it still count
        self.parsed_events += len(events)
        is_plain = sanitizer.is_plain and self.completion is None
        for event in events:
            if is_plain and type(event) is bytes:
                frame = frames.rebuild(event, not sanitizer.has_text)
                if frame is not None:
                    self._common_events += 1
                    self._last_common_event = event
                    sent.append(frame)
                    continue
            delta = sanitizer.read(event)
            if delta is not None:
                self._add_chunk(delta, sent)
            is_plain = sanitizer.is_plain and self.completion is None
            if sanitizer.said_done or sanitizer.failure is not None:
                break
        self.chunks += len(sent)
        self.failure = sanitizer.failure
        if not (sanitizer.said_done or self.failure):
            self._fail_if_too_large(is_too_large)
        self.stage = self._current_stage()
        self._may_be_common = is_plain and self._parser.is_between_events
        return sent[0] if len(sent) == 1 else b"".join(sent)

    def _add_chunk(self, delta: Delta, sent: list[bytes]) -> None:
        if self.completion is None:
            sent.append(self._frames.encode(delta))
        else:
            self.chunks += 1
            self.completion.add(delta)

    def _current_stage(self) -> Stage:
        sanitizer = self.sanitizer
        if sanitizer.said_done or self.failure is not None:
            return Stage.OVER
        if sanitizer.finish_reason is not None:
            return Stage.FINISHED
        if not sanitizer.has_begun:
            return Stage.WAITING
        return Stage.SPEAKING if sanitizer.has_text else Stage.THINKING

    def _fail_if_too_large(self, is_too_large: bool) -> None:
        """Fail an answer that exceeds a limit. Not called once the answer is over."""
        if is_too_large:
            self.sanitizer.drop(Dropped.TOO_LARGE)
        is_too_long = self._bytes_read > _MAX_STREAM_BYTES or (
            self.completion is not None and self.completion.size > _MAX_COMPLETION_CHARS
        )
        if is_too_large or is_too_long:
            self.failure = "upstream_protocol_error"

    def close(self) -> bytes:
        """Return the characters that still wait for their rest, before the answer ends in whatever way."""
        delta = self.sanitizer.close()
        if delta is None:
            return b""
        sent: list[bytes] = []
        self._add_chunk(delta, sent)
        self.chunks += len(sent)
        return b"".join(sent)

    def finish(self) -> bytes:
        """Return the last chunk of a whole answer: the finish reason and an empty delta."""
        self.chunks += 1
        return self._frames.encode(Delta(), self.sanitizer.finish_reason)

    def progress_chunk(self, fields: dict[str, str | int | None]) -> bytes:
        """Return a chunk without a choice that says how far the request has come."""
        return self._frames.progress(fields)

    def stripped(self) -> dict[Stripped, int]:
        """Return how many fields of each kind were removed."""
        stripped = self.sanitizer.stripped
        stripped[Stripped.MODEL] += self._common_events  # each has a `model`
        return stripped
