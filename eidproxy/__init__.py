"""eidproxy: a local-only sidecar between an app and the router of self-hosted language models.

The map, in the order in which a request meets the parts:

    cli        commands; config    settings; app       builds the parts and joins them; check, demo, top  commands
    signals    what ends the process; keepalive         server    the process that serves
    connection a caller's connection and its deadlines  http1     the request's edge, strictly
    endpoints  what can be asked for                    chat      the closed request
    surface    the chat surface; tokens                 pages     static pages
    relay      one request on its way: owns slot, upstream connection and deadline
    silence    how long a router may say nothing        wedge     whether its model server hangs
    settle     what is kept after a caller left
    gate       the slots; gate_redis shares them over gate_link and gate.lua; admission the queue discipline
    upstream   the connection to the router             egress    where it may lead
    wire       its transport; resolver                  countdown many waits, one timer
    sse        event framing                            sanitize  the closed chunk
    errors     the table of reasons                     vocabulary the closed sets
    metrics    logs

Pure (values in, values out; no I/O, no clock): errors, vocabulary, http1, chat, sse, sanitize, admission, silence,
wedge, egress.
The shell around them owns every await. Imports run one way. DESIGN.md says why.
"""
