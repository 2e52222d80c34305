"""The caller's side: the server, its connections, the HTTP parser and the validation of requests."""
