"""`nin demo` from a checkout: nin/commands/demo.py."""

from nin.commands.demo import start

if __name__ == "__main__":
    start()
