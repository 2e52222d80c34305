"""The tool calls of one answer: told apart, and numbered in the order in which they begin (contract, 4)."""

from eidproxy.relay.chunk import Function, ToolCall
from eidproxy.relay.dialect import RouterCall, RouterFunction, TooManyItems, is_json
from eidproxy.relay.repair import Seams, unmark

_MAX_PIECES = 4096
"""The most pieces in one event. No honest event has so many, and each costs some microseconds."""

_MAX_CALLS = 1024
"""The most calls in one answer. Each is kept until the answer ends."""

_MAX_KEPT_CHARS = 64 * 1024
_MAX_SCANNED_CHARS = 4 * 1024 * 1024
"""Limits for the check whether a call's arguments are complete JSON: characters kept of one call, and characters
scanned in one answer. Beyond them arguments count as incomplete."""


class ToolCalls:
    """The tool calls of one answer, told apart and numbered in the order in which they begin (contract, 4).

    Servers give parallel calls one index (ollama/ollama#15457), none (ollama/ollama#7881), or repeat id and name in
    each piece. A name begins a call, unless the call with that id has begun already.
    """

    __slots__ = ("_by_id", "_by_index", "_names", "_open_arguments", "_request_id", "_scanned_chars")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._names: list[str] = []
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}
        self._open_arguments: dict[int, str] = {}
        """Arguments of calls without an id or an index: once complete, the same name again begins another call."""
        self._scanned_chars = 0

    def read(self, pieces: list[RouterCall], seams: Seams | None, marked: bool) -> list[ToolCall]:
        """Return the pieces for the caller, numbered and with ids. Raises TooManyItems."""
        if len(pieces) > _MAX_PIECES:
            raise TooManyItems
        passed = []
        for piece in pieces:
            function = piece.function or RouterFunction()
            given_id, name = piece.id, function.name
            if marked:
                given_id, name = given_id and unmark(given_id), name and unmark(name)
            number = self._find_call(piece.index, given_id, name)
            arguments = function.arguments or ""
            if number is None:
                if not name:
                    continue  # a piece of a call that never began
                call = self._add_call(piece.index, given_id, name)
            else:
                call = ToolCall(number)
                if piece.index is not None and (name or arguments or given_id in self._by_id):
                    self._by_index[piece.index] = number
            if arguments and seams is not None:
                arguments = seams.join(call.index, arguments, marked)
            arguments_before = self._open_arguments.get(call.index)
            if arguments_before is not None and len(arguments_before) <= _MAX_KEPT_CHARS:
                self._open_arguments[call.index] = arguments_before + arguments
            if call.id is not None:
                call.function = Function(name, arguments)
                passed.append(call)
            elif arguments:
                call.function = Function(arguments=arguments)
                passed.append(call)
        return passed

    def _find_call(self, index: int | None, given_id: str | None, name: str | None) -> int | None:
        """Return the number of the call that a piece continues; None when it begins one, or no call has begun."""
        number = self._by_id.get(given_id) if given_id else None
        if name:
            if given_id:
                return number if number is not None and self._names[number] == name else None
            number = self._last_number if index is None else self._by_index.get(index)
            # Either the server gives no ids and repeats the name, or the next call has the same name.
            if number is None or self._names[number] != name or self._is_complete(number):
                return None
            return number
        if index is not None and index in self._by_index:
            return self._by_index[index]
        if number is not None:
            return number
        return self._last_number

    @property
    def _last_number(self) -> int | None:
        return len(self._names) - 1 if self._names else None

    def _is_complete(self, number: int) -> bool:
        """Return whether the arguments of a call are complete, so that no piece of it can follow."""
        arguments = self._open_arguments.get(number, "")
        self._scanned_chars += len(arguments)
        return self._scanned_chars <= _MAX_SCANNED_CHARS and is_json(arguments)

    def _add_call(self, index: int | None, given_id: str | None, name: str) -> ToolCall:
        number = len(self._names)
        if number == _MAX_CALLS:
            raise TooManyItems
        self._names.append(name)
        if index is not None:
            self._by_index[index] = number
        if not given_id or index is None:
            self._open_arguments[number] = ""
        if not given_id or given_id in self._by_id:
            given_id = f"call_{self._request_id}_{number}"
        self._by_id[given_id] = number
        return ToolCall(number, given_id, "function")
