"""`python -m pyro_lvm` is the `pyro-lvm` command."""

from pyro_lvm.cli import main

if __name__ == "__main__":
    main()
