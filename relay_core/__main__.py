"""`python -m relay_core` is the command `relay`."""

from relay_core.cli import main

if __name__ == "__main__":
    main()
