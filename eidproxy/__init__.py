"""eidproxy: a local-only sidecar between an app and the router of self-hosted language models.

A caller asks for `daily`, which waits for a slot at the gate, or for `deep`, which does not. The map, in the order in
which a request meets the parts:

    cli                     the commands
    config/                 settings: the list of them; sources: where values come from; validation: what is wrong
    app                     builds the parts and joins them; signals: what ends the process
    inbound/                a caller's side
        server, listener    the process that serves; its sockets
        connection          a caller's connection; connections: all of them, their deadlines, the memory they share
        http1, chat         the request's edge, strictly; the closed request
    endpoints               what can be asked for
    surface, tokens, site   the chat surface; who may use it; what a browser loads
    gate/                   the slots
        admission, local    the queue discipline; the gate in the process
        shared              the gate in a store (gate.lua); shared_permit, shared_factory: what it knows of a request,
                            how it is built; store_client: the connection to the store; address: where that is
        choice              which of the two: what a gate of another kind is added to
    router/                 the router's side
        upstream, resolver  how to reach it; names; hints: what an operator can do where it is not reached
        exchange, response  one request on a connection; what comes back; reasons: what its faults mean
        transport, tls      over TCP, and with TLS; idle: connections that wait for the next request
        shortcut            events that go past the interpreter, by the extension in _splice.c
    relay/                  one request on its way
        relay, states       owns slot, connection and deadline; what may end it
        upstream_request    the request once it is written; tally: what is counted of it
        splice, answer      joins body and answer; what the caller gets; progress tells it where it stands
        silence, wedge      how long a router may say nothing; whether its model server hangs; watch: who checks
        settle              what is kept after a caller left
        stream, sse         one answer from bytes to bytes; event framing
        dialect, repair     what routers send, in any spelling; broken Unicode
        sanitize            what may pass of it; tool_calls
        chunk, completion   the closed types that go out; the whole answer, without a stream
    commands/               check, live_check and look, demo with its people, top and view, service
        flags, schema       settings as flags; the types as JSON Schema
    testing/                for the tests of apps: plugin (pytest's), running (the proxy), fake_router (the demo's too)
    egress                  where connections may lead
    errors, vocabulary      the table of reasons; the closed sets
    monitoring/             for operators: metrics, logs; the record of a request; status, history: what `/status` tells
    timeouts, keepalive     many waits, one timer; TCP's own

Pure (values in, values out; no I/O, no clock): vocabulary, repair, errors, http1, chat, sse, chunk, dialect,
tool_calls, sanitize, completion, stream, admission, silence, wedge, egress, hints.
The shell around them owns every await. Imports run one way. DESIGN.md says why, deploy/CONTRACT.md what is promised.
"""

import sys

sys.set_int_max_str_digits(640)
"""The least that Python takes. A whole number of 4,300 digits takes 270 µs to read and to write, and 240 of them fit in
one body: nobody waits for them. What has more digits is no JSON here, as `1e999` is none."""
