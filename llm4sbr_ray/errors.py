"""The errors that end a command with exit status 2 and a single clear line."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or bad configuration: the message names the file, row or field and says what to do."""


class StorageError(UserError, OSError):
    """The storage of a run refuses a write: it is full, read-only or away."""

    @classmethod
    def of(cls, where: str, cause: object) -> StorageError:
        """What to say of a write that failed. (An error that a Ray worker raises is rebuilt from its one text.)"""
        reason = " ".join(str(cause).split())
        return cls(
            f"{where} cannot be written: {reason}. Make room or give access, then run the same command again: it goes "
            "on from what is committed"
        )
