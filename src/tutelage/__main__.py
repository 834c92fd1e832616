"""`python -m tutelage`: the command line, for where the command itself is not on the path."""

from tutelage.cli import main

if __name__ == "__main__":  # further processes of a server import this too
    main()
