"""The errors that end a command with exit status 2 and a single clear line."""


class UserError(Exception):
    """Bad input or bad configuration: the message names the file, row or field and says what to do."""


class StorageError(UserError, OSError):
    """The storage of a run refuses a write: it is full, read-only or away."""

    def __init__(self, where: str, cause: object) -> None:
        reason = " ".join(str(cause).split())
        super().__init__(
            f"{where} cannot be written: {reason}. Make room or give access, then run the same command again: it goes "
            "on from what is committed"
        )
