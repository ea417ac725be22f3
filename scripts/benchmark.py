"""`nin benchmark` from a checkout: nin/commands/benchmark.py."""

from nin.commands.benchmark import start

if __name__ == "__main__":
    start()
