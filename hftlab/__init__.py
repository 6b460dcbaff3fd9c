"""hftlab: research-to-production toolkit for high-frequency trading.

``import hftlab as hl`` costs nothing: each public name is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftlab.core.errors import HftlabError, LocalError, Refused, RemoteError
    from hftlab.core.instruments import Instrument
    from hftlab.core.rows import ROW, BookState, ExecType, Flag, Kind, OrdStatus, OrdType, Reason, Side, Tif

__all__ = [
    "BookState",
    "ExecType",
    "Flag",
    "HftlabError",
    "Instrument",
    "Kind",
    "LocalError",
    "OrdStatus",
    "OrdType",
    "ROW",
    "Reason",
    "Refused",
    "RemoteError",
    "Side",
    "Tif",
]

__version__ = "0.1.0"

_HOME_OF = {
    "BookState": "hftlab.core.rows",
    "ExecType": "hftlab.core.rows",
    "Flag": "hftlab.core.rows",
    "HftlabError": "hftlab.core.errors",
    "Instrument": "hftlab.core.instruments",
    "Kind": "hftlab.core.rows",
    "LocalError": "hftlab.core.errors",
    "OrdStatus": "hftlab.core.rows",
    "OrdType": "hftlab.core.rows",
    "ROW": "hftlab.core.rows",
    "Reason": "hftlab.core.rows",
    "Refused": "hftlab.core.errors",
    "RemoteError": "hftlab.core.errors",
    "Side": "hftlab.core.rows",
    "Tif": "hftlab.core.rows",
}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'hftlab' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
