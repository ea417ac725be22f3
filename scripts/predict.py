"""`nin predict` from a checkout: nin/commands/predict.py."""

from nin.commands.predict import start

if __name__ == "__main__":
    start()
