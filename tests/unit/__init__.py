"""One file for each module of the package, with values and sockets of its own."""
