"""The base class of all errors that the user can correct: one line that says what was expected and what was found."""


class UserError(ValueError):
    """A request that cannot be fulfilled. The command prints it as one line and exits with code 2."""
