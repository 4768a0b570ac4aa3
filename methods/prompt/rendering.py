"""How what a person said, and a question, are written for a language model: one wording for every prompt method.

A history is written oldest first, within a budget of tokens: comparisons that do not fit are left out whole, from the
end that `keep` does not name. Nothing is dropped silently: `Scribe.shortened` holds what lost text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from datasets_registry.records import Comparisons, Items

Keep = Literal["newest", "oldest"]
OPENING = "One person compared answers.\n\n"
PREFERRED = "They preferred:"
CUT = " ..."


@dataclass(frozen=True, slots=True)
class HistoryBudget:
    """How much of a history a prompt holds: tokens in all, tokens of one answer, and which end is kept."""

    tokens: int = 512
    response_tokens: int = 128
    keep: Keep = "newest"


@dataclass(frozen=True, slots=True)
class Told:
    """One comparison as it is written: the question, and what was preferred over what (`tied`: to which it was equal).

    `key` holds the texts of both, by which comparisons that share the preferred answer are written together.
    """

    question: str
    better: str
    worse: str
    tied: bool

    @property
    def opening(self) -> tuple[str, str, bool]:
        """Return what neighbouring comparisons must share to be written as one."""
        return self.question, self.better, self.tied


class Scribe:
    """Writes histories and questions about a dataset's items.

    `count` tells how many tokens a text is. `shortened` collects, for the record, every history that lost comparisons
    and every answer in a history that was cut; what a history lost is lost in each prompt that it stands in.
    """

    def __init__(self, items: Items, count: Callable[[str], int], budget: HistoryBudget) -> None:
        self.items = items
        self.budget = budget
        self.shortened: set[str] = set()
        self._count = count
        self._counted: dict[str, int] = {}
        self._cut: dict[int, str] = {}

    def history(self, said: Comparisons) -> str:
        """Return what one person said, oldest first, within the budget; "" where there is nothing to tell."""
        order = np.argsort(said.order, kind="stable")
        told = [self._told(said, int(row)) for row in order]
        kept = self._within(told)
        if len(kept) < len(told):
            self.shortened.add(written(told))
        return OPENING + written(kept) if kept else ""

    def question(self, item: int) -> str:
        """Return what stands before an answer whose likelihood is asked: its question, if it has one, and a cue."""
        return f"{asked(self.items.prompt[item])}{PREFERRED}"

    def pair(self, first: int, second: int) -> str:
        """Return the question to a judge: two answers, A and B, and which of them the person prefers."""
        one, other = self.items.prompt[first], self.items.prompt[second]
        if one == other:
            shown = f"{asked(one)}Answer A: {self.items.response[first]}\nAnswer B: {self.items.response[second]}\n"
        else:
            shown = f"Answer A: {self.items.text(first)}\nAnswer B: {self.items.text(second)}\n"
        return f"{shown}Which answer does this person prefer? Answer"

    def shortened_answer(self, item: int) -> str:
        """Return an answer as it stands in a history: cut at the end to `response_tokens`."""
        if item not in self._cut:
            whole = self.items.response[item].strip()
            text = fitted(whole, self.budget.response_tokens, self._tokens, keep="start", mark=CUT)
            if text != whole:
                self.shortened.add(whole)
            self._cut[item] = text
        return self._cut[item]

    def _told(self, said: Comparisons, row: int) -> Told:
        first, second, label = int(said.first[row]), int(said.second[row]), float(said.label[row])
        better, worse = (first, second) if label > 0.5 else (second, first)
        one, other = self.shortened_answer(better), self.shortened_answer(worse)
        # which of two that tie is named first must not depend on the side it was shown on
        if label == 0.5 and (other, self.items.prompt[worse]) < (one, self.items.prompt[better]):
            better, worse, one, other = worse, better, other, one
        mine, theirs = self.items.prompt[better], self.items.prompt[worse]
        if theirs != mine and theirs:
            other = f"{other} (asked: {theirs})"
        return Told(mine, one, other, label == 0.5)

    def _within(self, told: list[Told]) -> list[Told]:
        """Return the comparisons that fit, from the end that is kept; written together they take no more."""
        newest = self.budget.keep == "newest"
        left = self.budget.tokens
        kept: list[Told] = []
        for each in reversed(told) if newest else told:
            left -= self._tokens(written([each]))
            if left < 0:
                break
            kept.append(each)
        return kept[::-1] if newest else kept

    def _tokens(self, text: str) -> int:
        if text not in self._counted:
            self._counted[text] = self._count(text)
        return self._counted[text]


def asked(question: str) -> str:
    r"""Return the line of a question; nothing where there is none.

    >>> asked("Which plan?"), asked("")
    ('Question: Which plan?\n', '')
    """
    return f"Question: {question.strip()}\n" if question.strip() else ""


def written(told: list[Told]) -> str:
    """Return comparisons as text; neighbours with one question and one preferred answer share these lines.

    >>> print(written([Told("Q?", "a", "b", False), Told("Q?", "a", "c", False)]), end="")
    Question: Q?
    They preferred: a
    Over: b
    Over: c
    <BLANKLINE>
    """
    return "".join(_groups(told))


def _groups(told: list[Told]) -> Iterator[str]:
    for (question, better, tied), members in groupby(told, key=lambda each: each.opening):
        cue, other = ("They liked equally:", "And:") if tied else (PREFERRED, "Over:")
        worse = "".join(f"{other} {each.worse}\n" for each in members)
        yield f"{asked(question)}{cue} {better}\n{worse}\n"


def fitted(text: str, most: int, count: Callable[[str], int], *, keep: Literal["start", "end"], mark: str = "") -> str:
    """Return the longest start (or end) of a text that is at most `most` tokens, with `mark` where it was cut.

    >>> fitted("abcdef", 4, len, keep="start", mark="."), fitted("abcdef", 4, len, keep="end")
    ('abc.', 'cdef')
    """
    if count(text) <= most:
        return text

    def cut(characters: int) -> str:
        return text[:characters].rstrip() + mark if keep == "start" else text[len(text) - characters :]

    low, high = 0, len(text)  # cut(low) fits, or nothing does; cut(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(cut(middle)) <= most else (low, middle)
    return cut(low)


def quarter_bytes(text: str) -> int:
    """Return a count of tokens for where there is no tokenizer: a quarter of the bytes, rounded up.

    >>> quarter_bytes("hello"), quarter_bytes("")
    (2, 0)
    """
    return -(-len(text.encode()) // 4)
