"""The promises of the contract, judged from outside: a process, a router's sockets, a caller's bytes."""
