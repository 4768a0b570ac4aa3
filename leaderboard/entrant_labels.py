"""What entrants are called on a board: by name, and where a name has several, by what tells them apart."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from leaderboard.panel import Entrant
from leaderboard.ranking import Labeller

Config = Mapping[str, Any]
_PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]{1,32}")
_MOST = 72  # characters: what is longer is no name


def labeller(entrants: Iterable[tuple[Entrant, Config]]) -> Labeller:
    """Return how entrants are labelled, from all that are on a board, each with its configuration.

    A name with several distributions or versions is followed by these, and one with several configurations by the
    options in which they differ, as in `p-share-lora (core=kernel)`. A value that more than half of the configurations
    share is the usual one and is not said: where three depart from the method's defaults in one option each, the
    defaults have the bare name. Configurations that no short text tells apart have the beginning of their digest.
    """
    variants: dict[str, dict[Entrant, Config]] = defaultdict(dict)
    for entrant, config in entrants:
        variants[entrant.method].setdefault(dataclasses.replace(entrant, control=None), config)
    told: dict[tuple[str, str, str], dict[str, str]] = {}
    for method, same in variants.items():
        for dist, version in {(e.dist, e.version) for e in same}:
            configs = {e.config_sha256: c for e, c in same.items() if (e.dist, e.version) == (dist, version)}
            told[method, dist, version] = apart(configs)

    def label(entrant: Entrant) -> str:
        same = variants[entrant.method]
        name = entrant.method
        if len({e.dist for e in same}) > 1:
            name += f" [{entrant.dist[:40]}]"
        if len({e.version for e in same}) > 1:
            name += f" {entrant.version}"
        name += told[entrant.method, entrant.dist, entrant.version][entrant.config_sha256]
        return f"{name} ({entrant.control.replace('_', ' ')})" if entrant.control else name

    return label


def apart(configs: Mapping[str, Config]) -> dict[str, str]:
    """Return what is added to a name for each configuration, by its digest.

    >>> apart({"a": {"rank": 8, "core": "full"}, "b": {"rank": 8, "core": "kernel"}})
    {'a': ' (core=full)', 'b': ' (core=kernel)'}
    >>> apart({"a": {"rank": 8, "core": None}, "b": {"rank": 8, "core": "kernel"}, "c": {"rank": 2, "core": None}})
    {'a': '', 'b': ' (core=kernel)', 'c': ' (rank=2)'}
    """
    own: dict[str, list[str]] = {digest: [] for digest in configs}
    for key in sorted({key for config in configs.values() for key in config}):
        # nothing is "" in canonical form: it stands for a configuration without the option
        values = {digest: _canonical(config[key]) if key in config else "" for digest, config in configs.items()}
        value, n = Counter(values.values()).most_common(1)[0]
        usual = value if 2 * n > len(configs) else ""
        for digest, found in values.items():
            if found not in ("", usual):
                own[digest].append(f"{_shown(key)}={_shown(configs[digest][key])}")
    texts = {digest: f" ({', '.join(parts)})" if parts else "" for digest, parts in own.items()}
    alike = Counter(texts.values())
    return {d: text if alike[text] == 1 and len(text) <= _MOST else f" #{d[:8]}" for d, text in texts.items()}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    """Return a key or value as it stands in a label: plain words bare, anything else as JSON in ASCII."""
    if value is None:
        return "none"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
