"""Models of the Hugging Face hub by id: `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`, from a mirror folder or the hub.

A folder `<folder of HETPREF_MIRROR>/OWNER/NAME/<REVISION or main>` is looked at first; then the hub, where
HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN mean what they mean to transformers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets_registry.errors import RequestError
from datasets_registry.model_files import open_model, quiet, require_transformers
from datasets_registry.sources import UnreachableError, mirror_folders

PREFIX = "hub:"
FORM = "hub:OWNER/NAME or hub:OWNER/NAME@REVISION, for instance hub:EleutherAI/gpt-j-6b@main"
MAX_TOKENS = {"last": 1024, "mean": 512}
_PART = r"(?!\.+(?:/|@|$))[A-Za-z0-9_.-]+"
_ID = re.compile(rf"hub:({_PART})/({_PART})(?:@({_PART}(?:/{_PART})*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What published LoRA recipes adapt in each family: the projections of queries and values.
_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "electra": ("query", "value"),
    "gpt2": ("c_attn",),
}
_GATED_FAMILIES = ("llama", "qwen", "gemma", "mistral", "mixtral", "gptj", "smollm", "olmo", "opt")


@dataclass(frozen=True, slots=True)
class HubName:
    """A parsed hub id; `revision` is "main" where none was given."""

    owner: str
    name: str
    revision: str

    @property
    def path(self) -> str:
        """Return OWNER/NAME."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class HubModel:
    """What is known of a hub model once its configuration is read.

    `where` is a mirror folder, or the hub's OWNER/NAME; `revision` the hub's commit or, for a mirror folder that is not
    named after a commit, the sha256 of its files. `targets` is None for a family whose layers are not known here.
    """

    id: str
    where: Path | str
    revision: str
    family: str
    pooling: Literal["mean", "last"]
    width: int
    max_tokens: int
    targets: tuple[str, ...] | None

    def open(self, dtype: str, attention: str | None) -> tuple[Any, Any]:
        """Return (tokenizer, trunk); raises UnreachableError where files are missing, else RequestError."""
        revision = None if isinstance(self.where, Path) else self.revision
        try:
            return open_model(self.where, dtype=dtype, attention=attention, revision=revision)
        except OSError as why:
            raise _unreachable(self.id, why) from why
        except (ValueError, ImportError) as why:
            raise RequestError(f"transformers cannot open {self.id}: {_first_line(why)}") from why

    def linear_layers(self) -> list[str]:
        """Return the last names of the model's linear layers, without reading weights."""
        import torch
        from transformers import AutoModel

        with torch.device("meta"):
            trunk = AutoModel.from_config(_config(self.id, self.where, self.revision), trust_remote_code=False)
        kinds = {"Linear", "Conv1D"}
        return sorted({n.rpartition(".")[2] for n, m in trunk.named_modules() if type(m).__name__ in kinds})


def is_hub_id(encoder_id: str) -> bool:
    """Return whether an id has the form of a hub id.

    >>> is_hub_id("hub:EleutherAI/gpt-j-6b@main"), is_hub_id("hub:gpt2"), is_hub_id("hub:../x")
    (True, False, False)
    """
    return _ID.fullmatch(encoder_id) is not None


def hub_name(encoder_id: str) -> HubName:
    """Return the parts of a hub id; raises RequestError for another form.

    >>> hub_name("hub:EleutherAI/gpt-j-6b")
    HubName(owner='EleutherAI', name='gpt-j-6b', revision='main')
    """
    found = _ID.fullmatch(encoder_id)
    if found is None:
        raise RequestError(f"{encoder_id!r} is not the id of a hub model; the form is {FORM}")
    return HubName(found[1], found[2], found[3] or "main")


def hub_model(encoder_id: str) -> HubModel:
    """Return what a hub model is, from its configuration.

    Raises RequestError for an id of another form, a model that transformers does not know without code of its own, or
    one with a decoder that reads another text; UnreachableError where it is neither mirrored, cached nor reachable.
    """
    name = hub_name(encoder_id)
    where, revision = _mirrored(name) or _on_the_hub(encoder_id, name)
    config = _config(encoder_id, where, revision)
    if getattr(config, "is_encoder_decoder", False):
        raise RequestError(
            f"{encoder_id} is an encoder-decoder ({config.model_type}); text models here are encoders or causal models"
        )
    text: Any = config.get_text_config()
    pooling: Literal["mean", "last"] = "last" if _causal(config.model_type) else "mean"
    return HubModel(
        id=encoder_id,
        where=where,
        revision=revision,
        family=config.model_type,
        pooling=pooling,
        width=int(text.hidden_size),
        max_tokens=min(MAX_TOKENS[pooling], usable_positions(text)),
        targets=default_targets(config.model_type),
    )


def default_targets(family: str) -> tuple[str, ...] | None:
    """Return the linear layers to adapt in a family of models (transformers' model_type); None where not known.

    >>> default_targets("qwen3"), default_targets("t5")
    (('q_proj', 'v_proj'), None)
    """
    if family.startswith(_GATED_FAMILIES):
        return ("q_proj", "v_proj")
    return _TARGETS.get(family)


def _mirrored(name: HubName) -> tuple[Path, str] | None:
    relative = Path(name.owner, name.name, *name.revision.split("/"))
    for folder in mirror_folders():
        found = folder / relative
        if (found / "config.json").is_file():
            return found, name.revision if _COMMIT.fullmatch(name.revision) else _content(found)
    return None


def _content(folder: Path) -> str:
    """Return the sha256 of a folder's files, by name: what stands under a name such as main may change."""
    every = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        with path.open("rb") as file:
            every.update(f"{path.name}\x1f{hashlib.file_digest(file, 'sha256').hexdigest()}\x1e".encode())
    return every.hexdigest()


def _on_the_hub(encoder_id: str, name: HubName) -> tuple[str, str]:
    """Return OWNER/NAME and the commit that the revision stands for now."""
    if _COMMIT.fullmatch(name.revision):
        return name.path, name.revision
    require_transformers()
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(name.path, "config.json", revision=name.revision)
    except (OSError, ValueError) as why:
        raise _unreachable(encoder_id, why) from why
    return name.path, Path(found).parent.name  # the hub's cache keeps a folder per commit


def _config(encoder_id: str, where: Path | str, revision: str) -> Any:
    transformers = require_transformers()
    options = {"local_files_only": True} if isinstance(where, Path) else {"revision": revision}
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
    except OSError as why:
        raise _unreachable(encoder_id, why) from why
    except (ValueError, KeyError) as why:
        raise RequestError(f"transformers cannot open {encoder_id}: {_first_line(why)}") from why


def _causal(family: str) -> bool:
    """Return whether a family reads from left to right only; BERT can be told to, and is none."""
    from transformers.models.auto import modeling_auto as auto

    return family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def usable_positions(config: Any) -> int:
    """Return how many tokens a model has positions for; RoBERTa's kind starts to count behind its padding token."""
    told = getattr(config, "max_position_embeddings", None) or 10**9
    counts_behind = config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return int(told) - (int(config.pad_token_id or 0) + 1 if counts_behind else 0)


def _unreachable(encoder_id: str, why: Exception) -> UnreachableError:
    name = hub_name(encoder_id)
    return UnreachableError(
        f"cannot get {encoder_id} ({_first_line(why)}). Run once with access to the hub (HF_ENDPOINT; HF_TOKEN where "
        "the model is gated), or set HETPREF_MIRROR to a folder that holds the model's files in "
        f"<folder>/{name.path}/{name.revision}"
    )


def _first_line(why: Exception) -> str:
    lines = str(why).strip().splitlines()
    return lines[0] if lines else type(why).__name__
