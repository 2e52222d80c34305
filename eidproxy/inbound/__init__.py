"""A caller's side: connections, the request's edge, and what a request may say."""
