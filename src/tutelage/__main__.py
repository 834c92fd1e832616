"""`python -m tutelage`: the command line, for where the command itself is not on the path."""

from tutelage.cli import main

main()
