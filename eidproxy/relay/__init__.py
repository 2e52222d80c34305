"""One request on its way, and its answer from the router's bytes to the caller's."""
