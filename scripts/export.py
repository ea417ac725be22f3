"""`nin export` from a checkout: nin/commands/export.py."""

from nin.commands.export import start

if __name__ == "__main__":
    start()
