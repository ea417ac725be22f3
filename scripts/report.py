"""`nin report` from a checkout: nin/commands/report.py."""

from nin.commands.report import start

if __name__ == "__main__":
    start()
