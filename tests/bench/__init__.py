"""A benchmark that a user can run: `make bench`. See `__main__`."""
