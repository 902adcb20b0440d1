"""`python -m vqvae2` is the command `vqvae2`."""

from vqvae2.stopping import interrupt_on_signals


def main() -> None:
    """The command; it listens to signals before anything large is imported."""
    interrupt_on_signals()
    from vqvae2.cli import main as run

    run()


if __name__ == "__main__":
    main()
