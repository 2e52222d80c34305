"""`python -m eidproxy`."""

from eidproxy.cli import main

if __name__ == "__main__":
    main()
