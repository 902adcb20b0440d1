"""`python -m vqvae2` is the command `vqvae2`."""

from vqvae2.cli import main

if __name__ == "__main__":
    main()
