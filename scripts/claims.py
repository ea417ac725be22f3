"""`nin claims` from a checkout: nin/commands/claims.py."""

from nin.commands.claims import start

if __name__ == "__main__":
    start()
