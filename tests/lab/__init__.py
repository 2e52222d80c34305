"""The judges: the router, the caller and the proxy as a process; slow and obvious readers; what a machine can do."""
