"""`nin publish` from a checkout: nin/commands/publish.py."""

from nin.commands.publish import start

if __name__ == "__main__":
    start()
