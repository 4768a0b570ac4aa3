"""A causal text model of the registry as a language model that reads what its requests share only once.

It answers `loglikelihood` and `generate_until` as lm-eval's `HFLM` does, from the same tokens, and needs no lm-eval. A
person's history stands in every request about that person: its keys and values are computed once and the ends of the
requests are run in batches after it, which is several times less work on a CPU.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets_registry.text_models import TextModel

# Tokens that a batch holds at once, what it shares counted for each of its members: some 400 MB of keys and values.
BATCH_TOKENS = 8192
# Positions whose logits over the vocabulary are held at once.
LOGIT_ROWS = 512

Pair = tuple[list[int], list[int]]  # the tokens of a context, and of what continues it


class Request(Protocol):
    """What is asked: lm-eval's `Instance`, or `language_models.Asked`; `doc["shared"]` names what requests share."""

    doc: dict[str, Any]

    @property
    def args(self) -> tuple[Any, ...]:
        """Return (context, continuation), or (context, options of a generation)."""
        ...


class SharedPrefixLM:
    """A language model over a trunk whose head is its table of token embeddings, as SmolLM2's is."""

    def __init__(self, model: TextModel, device: str = "cpu") -> None:
        self._tokenizer = model.tokenizer
        self._trunk: Any = model.trunk.to(device)
        self._head: Any = self._trunk.get_input_embeddings().weight  # (vocabulary, width)
        self._device = device
        # transformers renamed the argument in 5.24
        takes = inspect.signature(self._trunk.forward).parameters
        self._cache_argument = "cache" if "cache" in takes else "past_key_values"
        self.max_length = int(self._trunk.config.max_position_embeddings)

    def tok_encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with what the tokenizer puts before every text."""
        return self._tokenizer(text, verbose=False)["input_ids"]

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context; the second value is not computed."""
        groups: dict[Any, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.doc.get("shared"), []).append(place)
        answers = np.empty(len(requests))
        for places in groups.values():
            answers[places] = self._group([self._encoded(*requests[place].args) for place in places])
        return [(float(value), False) for value in answers]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Return what follows each context, greedily: up to `max_gen_toks` tokens, ended by any text of `until`."""
        return [self._generated(*request.args) for request in requests]

    def _encoded(self, context: str, continuation: str) -> Pair:
        if not context:
            start = self._tokenizer.bos_token_id
            tokens = self._tokenizer(continuation, add_special_tokens=False, verbose=False)["input_ids"]
            return [self._tokenizer.eos_token_id if start is None else start], tokens
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a space belongs to the word that follows it
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        return before, whole[len(before) :]

    def _group(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Return the log-probabilities of continuations, float64 [n]; what all contexts begin with is run once."""
        import torch
        from transformers import DynamicCache

        shared = common_length([context for context, _ in pairs]) if len(pairs) > 1 else 0
        out = np.empty(len(pairs))
        with torch.inference_mode():
            past = None
            if shared:
                past = DynamicCache()  # running the trunk adds to it
                self._forward(past, input_ids=torch.tensor([pairs[0][0][:shared]], device=self._device))
            # answers of one token after one context, as a judge's letters, are read off one run
            runs: dict[tuple[int, ...], list[int]] = {}
            for place, (context, continuation) in enumerate(pairs):
                runs.setdefault(tuple((context + continuation)[shared:-1]), []).append(place)
            ends = list(runs)
            for rows in _batches([len(end) for end in ends], shared):
                hidden = self._run([ends[row] for row in rows], past, shared)  # (rows, longest, width)
                asked = [(at, place) for at, row in enumerate(rows) for place in runs[ends[row]]]
                places: list[tuple[int, int]] = []
                for at, place in asked:
                    start = len(pairs[place][0]) - shared - 1
                    places += [(at, start + k) for k in range(len(pairs[place][1]))]
                wanted = [token for _, place in asked for token in pairs[place][1]]
                values = self._log_probabilities(hidden, places, wanted)
                bounds = np.cumsum([0, *(len(pairs[place][1]) for _, place in asked)]).tolist()
                for (_, place), (start, end) in zip(asked, pairwise(bounds), strict=True):
                    out[place] = values[start:end].sum()
        return out

    def _run(self, ends: Sequence[Sequence[int]], past: Any, shared: int) -> Any:
        import torch

        longest = max(map(len, ends))
        ids = np.zeros((len(ends), longest), np.int64)
        mask = np.zeros((len(ends), shared + longest), np.int64)
        mask[:, :shared] = 1
        for row, end in enumerate(ends):
            ids[row, : len(end)] = end
            mask[row, shared : shared + len(end)] = 1
        cache = None
        if past is not None:
            cache = copy.deepcopy(past)
            cache.batch_repeat_interleave(len(ends))
        tokens, seen = (torch.from_numpy(array).to(self._device) for array in (ids, mask))
        return self._forward(cache, input_ids=tokens, attention_mask=seen)

    def _forward(self, cache: Any, **inputs: Any) -> Any:
        """Return the last hidden states of inputs that stand after what a cache holds (None: after nothing)."""
        given = {} if cache is None else {self._cache_argument: cache, "use_cache": True}
        return self._trunk(**inputs, **given).last_hidden_state

    def _log_probabilities(
        self, hidden: Any, places: Sequence[tuple[int, int]], wanted: Sequence[int]
    ) -> NDArray[np.float64]:
        """Return the log-probability of a token after each (row, position) of hidden states, float64 [n]."""
        import torch

        rows, columns = (torch.tensor(each, device=self._device) for each in zip(*places, strict=True))
        tokens = torch.tensor(wanted, device=self._device)[:, None]
        found: list[Any] = []
        for start in range(0, len(wanted), LOGIT_ROWS):
            some = slice(start, start + LOGIT_ROWS)
            logits = (hidden[rows[some], columns[some]] @ self._head.T).float()  # (LOGIT_ROWS, vocabulary)
            found.append(logits.log_softmax(-1).gather(1, tokens[some]).squeeze(1))
        return torch.cat(found).cpu().numpy().astype(np.float64)

    def _generated(self, context: str, options: dict[str, Any]) -> str:
        import torch
        from transformers import DynamicCache

        most, until = int(options.get("max_gen_toks", 256)), list(options.get("until", []))
        made: list[int] = []
        text = ""
        cache = DynamicCache()
        new = self.tok_encode(context)[-(self.max_length - most) :]
        with torch.inference_mode():
            while len(made) < most:
                hidden = self._forward(cache, input_ids=torch.tensor([new], device=self._device))
                token = int((hidden[0, -1] @ self._head.T).argmax())
                if token == self._tokenizer.eos_token_id:
                    break
                new = [token]
                made.append(token)
                text = self._tokenizer.decode(made, skip_special_tokens=True)
                if any(stop in text for stop in until):
                    break
        for stop in until:
            text = text.partition(stop)[0]
        return text


def common_length(contexts: Sequence[list[int]]) -> int:
    """Return how many tokens all contexts begin with; of the shortest, one is left to run.

    >>> common_length([[1, 2, 3, 4], [1, 2, 5]]), common_length([[1, 2], [1, 2]])
    (2, 1)
    """
    low, high = min(contexts), max(contexts)  # what these two share, all share
    least = min(map(len, contexts)) - 1
    return next((k for k in range(least) if low[k] != high[k]), least)


def _batches(lengths: Sequence[int], shared: int) -> Iterator[list[int]]:
    """Yield places of like length whose padded tokens, with what is shared, are at most BATCH_TOKENS."""
    order = np.argsort(lengths, kind="stable").tolist()
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * (shared + lengths[place]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
