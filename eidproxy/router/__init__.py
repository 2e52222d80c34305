"""The router's side: names, addresses, connections."""
