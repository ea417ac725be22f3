"""`nin evaluate` from a checkout: nin/commands/evaluate.py."""

from nin.commands.evaluate import start

if __name__ == "__main__":
    start()
