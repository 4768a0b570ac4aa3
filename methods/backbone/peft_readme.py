"""The README.md of a written adapter: what it is, and the lines of Python that score a text with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from datasets_registry.errors import printable
from datasets_registry.hub_models import PREFIX, hub_name
from datasets_registry.text_models import TextModel

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter belongs to: a model of the hub with its revision, or a text model of this package (no revision).

    The other fields say how a text is read.
    """

    name: str
    revision: str | None
    pooling: Literal["mean", "last"]
    max_tokens: int
    cut: str
    pad: str
    dtype: str

    @classmethod
    def of(cls, text: TextModel, dtype: str) -> Base:
        """Return the base of an opened text model."""
        name, revision = text.id, None
        if text.id.startswith(PREFIX):
            told = hub_name(text.id)
            name = told.path
            revision = text.revision if _COMMIT.fullmatch(text.revision) else told.revision
        token = text.tokenizer
        return cls(name, revision, text.pooling, text.max_tokens, token.truncation_side, token.pad_token, dtype)


# By this an export knows a folder that it may write over.
OURS = "Exported by hetpref."


def readme(base: Base, method: str, dataset: str, user: str, task: str, prefix: str) -> str:
    """Return the text; its one block of Python defines `rewards(texts)`, [n] for n texts, and is run by a test."""
    about = ["library_name: peft", *([f"base_model: {base.name}"] if base.revision else [])]
    exact = (
        "" if base.dtype == "float32" else f" It was trained in {base.dtype}; scores in float32 agree to its rounding."
    )
    needs = "`peft`, `transformers` 4.56 or later" + ("" if base.revision else " and `hetpref`")
    return "\n".join(
        [
            "---",
            *about,
            "---",
            f"# {method} on {_inline(dataset)}: the adapter of {_inline(user)}",
            "",
            f"A reward model as a LoRA adapter of `{base.name}`. The differences of two texts' rewards are logits: "
            f"sigmoid(r(a) - r(b)) is the probability that this person prefers a to b.{exact}",
            "",
            f"{OURS} It needs {needs}. A text is the prompt, a line break and the response, or the response alone "
            "where there is no prompt.",
            "",
            "```python",
            *_code(base, task, prefix),
            "```",
            "",
        ]
    )


def _code(base: Base, task: str, prefix: str) -> list[str]:
    scored = task == "SEQ_CLS"
    kind = "AutoModelForSequenceClassification" if scored else "AutoModel"
    return [
        "import torch",
        "from peft import PeftModel",
        *(_from_hub(base, kind, scored) if base.revision else _from_package(base, prefix, scored)),
        "",
        'folder = "."  # where this file lies',
        "model = PeftModel.from_pretrained(base, folder).eval()",
        *([] if scored else ['head = load_file(f"{folder}/reward_head.safetensors")["head"]  # [d]']),
        "",
        "def rewards(texts):",
        f"    batch = tokenizer(texts, truncation=True, max_length={base.max_tokens}, padding=True,",
        '                      return_token_type_ids=False, return_tensors="pt")',
        "    with torch.no_grad():",
        *(["        return model(**batch).logits[:, 0]"] if scored else _pooled(base)),
        "",
        r'print(rewards(["Which plan?\nThe cheap one.", "Which plan?\nThe green one."]))',
    ]


def _from_hub(base: Base, kind: str, scored: bool) -> list[str]:
    more = "num_labels=1, pad_token_id=tokenizer.pad_token_id, " if scored else ""
    return [
        *([] if scored else ["from safetensors.torch import load_file"]),
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f'name, revision = "{base.name}", "{base.revision}"',
        f'tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, truncation_side="{base.cut}",',
        '                                          padding_side="right")',
        f"tokenizer.pad_token = {base.pad!r}",
        f'base = {kind}.from_pretrained(name, revision=revision, {more}dtype="float32")',
    ]


def _from_package(base: Base, prefix: str, scored: bool) -> list[str]:
    opened = [
        "from datasets_registry.text_models import load_text_model",
        "",
        f'text = load_text_model("{base.name}")',
    ]
    if not scored:
        return ["from safetensors.torch import load_file", *opened, "tokenizer, base = text.tokenizer, text.trunk"]
    return [
        "from transformers import AutoModelForSequenceClassification",
        *opened,
        "tokenizer, trunk = text.tokenizer, text.trunk",
        "trunk.config.num_labels, trunk.config.pad_token_id = 1, tokenizer.pad_token_id",
        "base = AutoModelForSequenceClassification.from_config(trunk.config)",
        f"base.{prefix.removesuffix('.')} = trunk",
    ]


def _pooled(base: Base) -> list[str]:
    """Return the lines that read the head's input from the last hidden states."""
    hidden = "        hidden = model(**batch).last_hidden_state  # [n, tokens, d]"
    if base.pooling == "last":
        last = '    last = batch["attention_mask"].sum(1) - 1'
        return [hidden, last, "    return hidden[torch.arange(len(last)), last] @ head"]
    return [
        hidden,
        '    mask = batch["attention_mask"][:, :, None]',
        "    mean = (hidden * mask).sum(1) / mask.sum(1)",
        "    return torch.nn.functional.normalize(mean, dim=1) @ head",
    ]


def _inline(text: str) -> str:
    """Return a name as Markdown code in one line, whatever signs it has."""
    kept = " ".join(printable(text).replace("`", "'").split())[:120]
    return f"`{kept}`"
