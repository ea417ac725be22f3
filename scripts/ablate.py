"""`nin ablate` from a checkout: nin/commands/ablate.py."""

from nin.commands.ablate import start

if __name__ == "__main__":
    start()
