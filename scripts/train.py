"""`nin train` from a checkout: nin/commands/train.py."""

from nin.commands.train import start

if __name__ == "__main__":
    start()
