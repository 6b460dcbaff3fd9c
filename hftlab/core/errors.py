"""Every error hftlab raises on purpose, and whose fault it is.

The tree::

    HftlabError
     +- LocalError        we, or the caller, broke a rule: the call must change
     |   +- ConfigError       a setting, a file or an argument is wrong
     |   +- OffGridError      a price or quantity is not a multiple of its tick or lot, or does not fit int64
     |   +- StrategyError     a strategy failed: compile error, fault, too many loop turns
     |   +- Refused           risk, a gate or a limit said no; carries check, value and limit
     +- RemoteError       the other side broke the protocol, or refused
     |   +- ProtocolError     bytes that do not follow the venue's rules
     |   +- VenueError        the venue answered with an error code
     +- JournalError      a journal cannot be read or written
         +- ReaderBehind      the segment a reader stood in has been removed

Messages name the argument, what was expected and what came.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "HftlabError",
    "JournalError",
    "LocalError",
    "NotFound",
    "OffGridError",
    "ProtocolError",
    "ReaderBehind",
    "Refused",
    "RemoteError",
    "StrategyError",
    "VenueError",
]


class HftlabError(Exception):
    """Base of every error raised on purpose."""


class LocalError(HftlabError):
    """We, or the caller, broke a rule; repeating the call unchanged cannot help."""


class RemoteError(HftlabError):
    """The other side broke the protocol or refused."""


class ConfigError(LocalError):
    """A setting, a file or an argument is wrong; the message says what to write instead."""


class NotFound(ConfigError):
    """Nothing has the name that was asked for; the message lists the names there are."""


class OffGridError(LocalError):
    """A decimal is not a whole number of ticks or lots, or does not fit int64."""


class StrategyError(LocalError):
    """A strategy does not compile, failed while running, or never returned."""


class Refused(LocalError):
    """Risk or a gate said no.

    Parameters
    ----------
    check : str
        Name of the check in the glossary's words, such as ``price_collar``.
    message : str
        What was asked, what is allowed and what to do.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


class ProtocolError(RemoteError):
    """Bytes from outside do not follow the protocol; nothing of them was applied."""


class VenueError(RemoteError):
    """The venue answered with an error.

    Parameters
    ----------
    code : int
        The venue's own code, such as -2010.
    message : str
        The venue's own text.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"venue error {code}: {message}")
        self.code = code
        self.message = message


class JournalError(HftlabError):
    """A journal cannot be read or written; the message names file and row."""


class ReaderBehind(JournalError):
    """The segment a reader stood in has been rotated away; attach again from the oldest that is left."""
