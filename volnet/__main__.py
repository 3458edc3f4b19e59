"""`python -m volnet` is the `volnet` command."""

from volnet.cli.main import app

if __name__ == "__main__":
    app(prog_name="volnet")
