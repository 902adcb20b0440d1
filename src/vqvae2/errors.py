"""The base class of all errors that the user can correct; the message is one line: what was expected, what was found."""


class UserError(ValueError):
    """A mistake of the user; the command prints the message as one line and ends with exit code 2."""
