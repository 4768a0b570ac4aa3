"""A method that has the labels when its module is imported, before anything of it is called."""

import contextlib

from cheating_methods import Honest, spec

LABELS = None
with contextlib.suppress(Exception):
    from datasets_registry import load

    LABELS = load("planted@1+users=60").comparisons.label


class AtImport(Honest):
    spec = spec("hunts-at-import")

    def hunt(self, queries):
        return [] if LABELS is None else [LABELS]
