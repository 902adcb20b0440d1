"""The base of every error that is the user's to mend: one clear line, what was expected and what was found."""


class UserError(ValueError):
    """A mistake in what was asked for; the command prints it as one line and exits with 2."""
