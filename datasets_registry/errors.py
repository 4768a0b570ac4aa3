"""The one exception family of the project, and the form its messages take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# C0 and C1 controls but tab and newline, and what XML cannot hold: a terminal would obey them, a page would break.
CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff"


class HetprefError(Exception):
    """Base of every error that the project raises on purpose; the message says what to do next."""


class RequestError(HetprefError):
    """The request was wrong: an unknown name, an option out of range (exit code 2)."""


class DataError(HetprefError):
    """A dataset, download, record or file is not what it must be."""


class MethodError(HetprefError):
    """A method broke the common interface: wrong shape, NaN, an exception of its own."""


class UnableError(MethodError):
    """A method cannot serve what it is asked, by its own nature: the measurement is skipped and says why."""


def unknown(kind: str, given: str, allowed: Iterable[str], *, then: str = "") -> RequestError:
    """Return the error for a name that is not in a registry: given, allowed, nearest, what to do.

    >>> print(unknown("dataset", "electrcity", ["electricity@1"], then="List them: hetpref datasets"))
    unknown dataset 'electrcity'. Did you mean 'electricity@1'? Allowed: electricity@1. List them: hetpref datasets
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names) if names else "none is registered"
    tail = f" {then}" if then else ""
    return RequestError(f"unknown {kind} {given!r}.{hint} Allowed: {listed}.{tail}")


def printable(text: str) -> str:
    r"""Return text without control characters, but with its tabs and newlines: what may be shown or stored.

    >>> printable("1\x1b[31m\n")
    '1[31m\n'
    """
    return re.sub(f"[{CONTROL}]", "", text)
