"""eidproxy: a local-only sidecar between an app and the router of self-hosted language models.

The map, in the order in which a request meets the parts:

    cli        commands; flags     settings as flags    config    settings
    app        builds the parts and joins them          check, demo, top, service  commands
    signals    what ends the process; keepalive         server    the process that serves
    connection a caller's connection and its deadlines  http1     the request's edge, strictly
    endpoints  what can be asked for                    chat      the closed request; schema
    surface    the chat surface; tokens                 pages     what a browser loads, refusals as pages
    relay      one request on its way: owns slot, upstream connection and deadline; progress tells its caller where
    silence    how long a router may say nothing        wedge     whether its model server hangs
    settle     what is kept after a caller left
    gate       the slots; gate_redis shares them over gate_link and gate.lua; admission the queue discipline
    upstream   the connection to the router             egress    where it may lead
    wire       its transport; idle; resolver            countdown many waits, one timer
    stream     one answer from bytes to bytes           sse       event framing
    dialect    what routers send, in any spelling       repair    broken Unicode, mended and joined
    sanitize   what may pass of it; tool_calls          chunk     the closed types that go out
    completion the whole answer, without a stream
    errors     the table of reasons                     vocabulary the closed sets
    metrics    logs; status        what `/status` tells; history  its last five minutes
    hints      what an operator can do; look, live_check  `check --live`
    fake_router a router that does what it is told: for testing, the public pytest plugin, and for demo and demo_people

Pure (values in, values out; no I/O, no clock): vocabulary, repair, errors, http1, chat, sse, chunk, dialect,
tool_calls, sanitize, completion, stream, admission, silence, wedge, egress, hints.
The shell around them owns every await. Imports run one way. DESIGN.md says why, deploy/CONTRACT.md what is promised.
"""

import sys

sys.set_int_max_str_digits(640)
"""The least that Python takes. A whole number of 4,300 digits takes 270 µs to read and to write, and 240 of them fit in
one body: nobody waits for them. What has more digits is no JSON here, as `1e999` is none."""
