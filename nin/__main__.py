"""python -m nin: the same as nin."""

from nin.commands import main

if __name__ == "__main__":
    main()
