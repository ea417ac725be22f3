"""`nin cost` from a checkout: nin/commands/cost.py."""

from nin.commands.cost import start

if __name__ == "__main__":
    start()
