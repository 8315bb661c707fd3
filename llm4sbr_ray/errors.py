"""The one error type that ends a command with exit status 2 and a single clear line."""


class UserError(Exception):
    """Bad input or bad configuration: the message names the file, row or field and says what to do."""
