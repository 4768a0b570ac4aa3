"""Language models by name: a causal text model of the registry, or any backend of lm-eval behind its `LM` interface.

`smollm2-135m@1` is of the registry and needs no lm-eval; `hf:OWNER/NAME` and `vllm:OWNER/NAME` are lm-eval backends
with the model they load; `local-completions:NAME,base_url=http://localhost:8000/v1/completions` is a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import MethodError, RequestError, unknown
from datasets_registry.text_models import DTYPES, TEXT_MODELS, load_text_model
from methods.prompt.rendering import fitted, quarter_bytes

FORM = "a text model of the registry, or BACKEND:MODEL[,OPTION=VALUE...] with a backend of lm-eval, as hf:OWNER/NAME"
# What a backend calls the model that stands first in its arguments; every other one calls it "pretrained".
_MODEL_ARGUMENT = {"gguf": "base_url", "ggml": "base_url", "textsynth": "engine", "litellm": "model"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to a language model: how likely is `continuation` after `context`.

    `shared` is what the context begins with and other questions of the call may begin with, too.
    """

    context: str
    continuation: str
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Plain:
    """A request as lm-eval's `Instance` is, for models that need no lm-eval."""

    args: tuple[Any, ...]
    doc: dict[str, Any] = field(default_factory=dict[str, Any])


def embedded() -> tuple[str, ...]:
    """Return the ids of the registry's causal text models."""
    return tuple(name for name, spec in TEXT_MODELS.items() if spec.pooling == "last")


def must_be_a_language_model(name: str) -> None:
    """Raise RequestError unless a name has the form of a language model's; nothing is imported or loaded."""
    model, *options = name.split(",")
    if model in TEXT_MODELS:
        if model not in embedded():
            raise RequestError(f"lm {name!r:.80} predicts no text; allowed: {', '.join(embedded())}, or {FORM}")
        for option in options:
            key, _, value = option.partition("=")
            if key != "dtype" or value not in DTYPES:
                raise RequestError(f"lm {name!r:.80}: option {option!r}; allowed: dtype={', dtype='.join(DTYPES)}")
        return
    backend, colon, rest = name.partition(":")
    if not colon or not backend or not rest:
        raise unknown("language model", name[:80], embedded(), then=f"Or {FORM}")


def is_local(name: str) -> bool:
    """Return whether a language model is the registry's own, which reaches nothing outside of this machine."""
    return name.split(",")[0] in TEXT_MODELS


class LanguageModel:
    """A language model with a memory of what it was asked, and a count of what did not fit into its window.

    Nobody else's cache is used: lm-eval's own does not tell one model from another. `truncated` is the number of
    distinct questions that lost text.
    """

    def __init__(self, lm: Any, *, plain: bool) -> None:
        self._lm = lm
        self._plain = plain
        self._known: dict[tuple[str, str], float] = {}
        self._written: dict[tuple[str, int], str] = {}
        self._cut: set[tuple[str, str]] = set()

    @property
    def truncated(self) -> int:
        """Return how many distinct questions lost text to the model's window."""
        return len(self._cut)

    def count(self, text: str) -> int:
        """Return how many tokens a text is; a quarter of its bytes where the backend has no tokenizer."""
        encode = getattr(self._lm, "tok_encode", None)
        if encode is None or getattr(self._lm, "tokenizer", encode) is None:
            return quarter_bytes(text)
        return len(encode(text))

    def loglikelihoods(self, asked: Sequence[Asked]) -> NDArray[np.float64]:
        """Return the log-probability of each continuation, in nats, float64 [n]; each distinct question is run once."""
        new = {(a.context, a.continuation): a for a in asked if (a.context, a.continuation) not in self._known}
        if new:
            requests = [
                self._request("loglikelihood", self._fitting(*key), {"shared": each.shared})
                for key, each in new.items()
            ]
            answers = self._lm.loglikelihood(requests)
            if len(answers) != len(requests):
                raise MethodError(f"the language model gave {len(answers)} answers to {len(requests)} requests")
            self._known.update((key, float(value)) for key, (value, _) in zip(new, answers, strict=True))
        return np.array([self._known[a.context, a.continuation] for a in asked], np.float64)

    def written(self, contexts: Sequence[str], most: int) -> list[str]:
        """Return what the model writes after each context: one line, greedily, of at most `most` tokens."""
        new = [context for context in dict.fromkeys(contexts) if (context, most) not in self._written]
        if new:
            how = {"until": ["\n"], "max_gen_toks": most, "do_sample": False}
            requests = [self._request("generate_until", (self._ending(c, most), dict(how)), {}) for c in new]
            for context, text in zip(new, self._lm.generate_until(requests), strict=True):
                self._written[context, most] = str(text).strip()
        return [self._written[context, most] for context in contexts]

    def _fitting(self, context: str, continuation: str) -> tuple[str, str]:
        """Return a question that fits: a context loses its beginning, a continuation longer than a window its end."""
        window = getattr(self._lm, "max_length", None)
        if not isinstance(window, int) or self.count(context + continuation) <= window:
            return context, continuation
        self._cut.add((context, continuation))
        continuation = fitted(continuation, window - 8, self.count, keep="start")
        return fitted(context, window - self.count(continuation), self.count, keep="end"), continuation

    def _ending(self, context: str, most: int) -> str:
        window = getattr(self._lm, "max_length", None)
        if not isinstance(window, int) or self.count(context) + most <= window:
            return context
        self._cut.add((context, ""))
        return fitted(context, max(window - most, 1), self.count, keep="end")

    def _request(self, kind: str, arguments: tuple[Any, ...], doc: dict[str, Any]) -> Any:
        if self._plain:
            return Plain(arguments, doc)
        from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]

        return Instance(request_type=kind, doc=doc, arguments=arguments, idx=0)


def open_language_model(name: str, device: str = "cpu") -> LanguageModel:
    """Return a language model by name, on a device where it is one of this process.

    Raises RequestError for a name or backend that is none, and where lm-eval is needed and not installed.
    """
    must_be_a_language_model(name)
    if is_local(name):
        from methods.prompt.shared_prefix import SharedPrefixLM

        model, *options = name.split(",")
        dtype = options[-1].partition("=")[2] if options else "float32"
        return LanguageModel(SharedPrefixLM(load_text_model(model, dtype=dtype), device), plain=True)
    backend, _, rest = name.partition(":")
    return LanguageModel(_opened(backend, rest, device), plain=False)


def _opened(backend: str, rest: str, device: str) -> Any:
    try:
        # the registry of models fills itself on import only where it is empty
        import lm_eval.models  # pyright: ignore[reportMissingImports]
        from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]
    except ImportError as why:
        raise RequestError(
            f"the language model {backend}:{rest:.60} needs lm-eval, which is not installed: pip install "
            f"'hetpref[lm-eval]' (or use {embedded()[0]})"
        ) from why
    if backend not in lm_eval.models.MODEL_MAPPING:
        raise unknown("backend of lm-eval", backend, lm_eval.models.MODEL_MAPPING)
    given = arguments(backend, rest)
    if backend in ("hf", "hf-auto", "huggingface"):
        given.setdefault("device", device)
    return get_model(backend).create_from_arg_obj(given)


def arguments(backend: str, rest: str) -> dict[str, Any]:
    """Return the arguments of a backend from "MODEL,option=value"; numbers are numbers.

    >>> arguments("hf", "owner/name,batch_size=8"), arguments("gguf", "http://localhost:8000")
    ({'pretrained': 'owner/name', 'batch_size': 8}, {'base_url': 'http://localhost:8000'})
    """
    first, *others = rest.split(",")
    key = _MODEL_ARGUMENT.get(backend, "model" if "completions" in backend else "pretrained")
    given: dict[str, Any] = {key: first}
    for each in others:
        name, sign, value = each.partition("=")
        if not sign or not name:
            raise RequestError(f"lm {backend}:{rest:.60}: {each!r:.40}; allowed: {FORM}")
        given[name] = _value(value)
    return given


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
