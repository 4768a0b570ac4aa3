"""Comparisons of texts as columns: what the text datasets share, from arrow columns to a loader's `Pieces`.

A column holds every text once and a number per row, so that a prompt that many comparisons share, or a response that
is compared with many others, costs a number each time and no copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from datasets_registry.errors import DataError
from datasets_registry.records import Comparisons, Float64, Int32, Items, Users
from datasets_registry.registry import Pieces

if TYPE_CHECKING:
    import pyarrow as pa

Rows = NDArray[np.int64]
MISSING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """A column of n texts: row i is values[codes[i]], or missing where the code is -1.

    values: arrow large_string [n_values], without nulls; codes: int64 [n].
    """

    values: pa.Array
    codes: Rows

    @classmethod
    def of(cls, column: Any, what: str) -> Self:
        """Return an arrow column of strings; `what` names it in errors.

        Raises DataError for any other type: a list or number that is rendered as text has a form of its own, and where
        only one of two responses has it, it gives the answer away.
        """
        import pyarrow as pa

        if pa.types.is_null(column.type):
            return cls(pa.array([], pa.large_string()), np.full(len(column), MISSING, np.int64))
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise DataError(
                f"{what} is {column.type}; only text is allowed here. A loader that rendered it as text would mark "
                "some responses by their form: look at the dataset, and read the text out of it"
            )
        whole = column.cast(pa.large_string())
        if isinstance(whole, pa.ChunkedArray):
            whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], pa.large_string())
        encoded = whole.dictionary_encode()
        codes = encoded.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(encoded.dictionary, codes)

    @classmethod
    def concatenate(cls, parts: list[Texts]) -> Self:
        """Stack columns in the order given; their values are joined, equal ones not merged."""
        import pyarrow as pa

        starts = np.cumsum([0, *(len(part.values) for part in parts)])[:-1]
        codes = [np.where(p.codes < 0, MISSING, p.codes + start) for p, start in zip(parts, starts, strict=True)]
        return cls(pa.concat_arrays([part.values for part in parts]), np.concatenate(codes))

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: NDArray[Any]) -> Self:
        """Return the rows of an index array or a boolean mask."""
        return replace(self, codes=self.codes[rows])

    def each(self, change: Callable[[str], str]) -> Self:
        """Return the column with every distinct text changed, in Python: texts, not comparisons, are gone through."""
        import pyarrow as pa

        changed = [change(text) for text in self.values.to_pylist()]
        return replace(self, values=pa.array(changed, pa.large_string()))

    def named_alike(self, kind: str) -> Self:
        """Return the names of clusters: `kind` and a hash; texts that differ in case and blanks only have one name.

        >>> import pyarrow as pa
        >>> texts = Texts.of(pa.array(["Hello  you", "hello you", "Bye"]), "prompt")
        >>> one, same, other = texts.named_alike("prompt").values.to_pylist()
        >>> one == same, one == other, one.partition("-")[0]
        (True, False, 'prompt')
        """
        return self.each(lambda text: f"{kind}-{hashlib.sha256(plain(text).encode()).hexdigest()[:16]}")

    def arrow(self) -> pa.Array:
        """Return the column as an arrow array of strings, with nulls where texts are missing."""
        import pyarrow as pa

        return self.values.take(pa.array(np.maximum(self.codes, 0), mask=self.codes < 0))


@dataclass(frozen=True, slots=True, eq=False)
class TextPairs:
    """n comparisons of two responses to one prompt, as columns of length n.

    A unit is a prompt in its cluster: `cluster` names what must never be cut by a split. label: float64, P(chosen is
    preferred): 1, or .5 for a tie, where "chosen" only names a side.
    """

    person: Texts
    prompt: Texts
    cluster: Texts
    chosen: Texts
    rejected: Texts
    label: Float64

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: NDArray[Any]) -> Self:
        """Return the rows of an index array or a boolean mask."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v[rows] if k == "label" else v.take(rows) for k, v in parts.items()})

    def told_apart(self) -> Self:
        """Return the pairs whose prompt is there and whose responses are neither empty, missing nor the same text."""
        import pyarrow.compute as pc

        values, (chosen, rejected) = _coded(self.chosen, self.rejected)
        plain = pc.utf8_trim_whitespace(values).dictionary_encode()  # pyright: ignore[reportAttributeAccessIssue]
        code = plain.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        said = pc.greater(pc.utf8_length(plain.dictionary), 0).to_numpy(zero_copy_only=False)  # pyright: ignore
        code = np.append(np.where(said[code], code, MISSING), MISSING) if len(code) else np.array([MISSING])
        first, second = code[chosen], code[rejected]
        keep = (first >= 0) & (second >= 0) & (first != second) & (self.prompt.codes >= 0)
        return self if keep.all() else self.take(keep)

    def once(self) -> Self:
        """Return the pairs without exact repeats: the same person, prompt, cluster, responses and label once only."""
        names = ("person", "prompt", "cluster", "chosen", "rejected")
        key = np.zeros(len(self), np.int64)
        for column in [*(_coded(getattr(self, name))[1][0] for name in names), self.label]:
            _, part = np.unique(column, return_inverse=True)
            _, key = np.unique(key * (int(part.max(initial=0)) + 1) + part, return_inverse=True)
        _, first = np.unique(key, return_index=True)
        return self if len(first) == len(self) else self.take(np.sort(first))

    def pieces(self, people: str = "") -> Pieces:
        """Return the dataset: comparisons row by row as here, without the pairs that `told_apart` drops.

        People are in the order in which they first come, and `people` is put before their names. Items are numbered by
        their texts, so that the row of an item tells nothing about who preferred it; so are units and clusters.
        Raises DataError for a pair without a person or a cluster.
        """
        told = self.told_apart()
        for name in ("person", "cluster"):
            if (getattr(told, name).codes < 0).any():
                raise DataError(f"{int((getattr(told, name).codes < 0).sum())} comparisons have no {name}")
        names, (person,) = ranked(told.person)
        _, first_row, who = np.unique(person, return_index=True, return_inverse=True)
        order = np.argsort(first_row)
        prompts, (prompt,) = ranked(told.prompt)
        responses, (chosen, rejected) = ranked(told.chosen, told.rejected)
        clusters, (cluster,) = ranked(told.cluster)
        pairs, item = _pairs(np.tile(prompt, 2), np.concatenate([chosen, rejected]))
        units, unit = _pairs(prompt, cluster)
        return Pieces(
            users=Users(tuple(f"{people}{names[n]}" for n in order)),
            items=Items(tuple(prompts[p] for p in pairs[0]), tuple(responses[r] for r in pairs[1])),
            comparisons=Comparisons.of(
                user=np.argsort(order)[who],
                unit=unit,
                first=item[: len(told)],
                second=item[len(told) :],
                label=told.label,
            ),
            unit_cluster=units[1].astype(np.int32),
            clusters=tuple(clusters),
        )


def plain(text: str) -> str:
    """Return a text without what two copies of it may differ in: case, and how blanks are set."""
    return " ".join(text.casefold().split())


def ranked(*columns: Texts) -> tuple[list[str], list[Rows]]:
    """Return the texts that occur in columns without missing rows, sorted, and each column as positions in them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values, codes = _coded(*columns)
    order = pc.sort_indices(values).to_numpy(zero_copy_only=False).astype(np.int64)  # pyright: ignore
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ranks = [rank[each] for each in codes]
    there = np.unique(np.concatenate(ranks))
    texts = values.take(pa.array(order[there])).to_pylist()
    return texts, [np.searchsorted(there, each) for each in ranks]


def pairs_within(group: NDArray[Any]) -> tuple[Rows, Rows]:
    """Return every pair of rows of one group, int64 [n_pairs] each, the earlier row first, in order of rows.

    >>> [a.tolist() for a in pairs_within(np.array([7, 3, 7, 7]))]
    [[0, 0, 2], [2, 3, 3]]
    """
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    firsts, seconds = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step in range(1, len(group)):
        same = sorted_group[step:] == sorted_group[:-step]
        if not same.any():
            break
        firsts.append(order[:-step][same])
        seconds.append(order[step:][same])
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    by_row = np.lexsort((second, first))
    return first[by_row], second[by_row]


def joined(*parts: Any) -> pa.Array:
    """Return texts put together row by row, an arrow array; a part is an arrow array or one text for all rows.

    A row is null where a part of it is.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    large = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else p.cast(pa.large_string()) for p in parts]
    return pc.binary_join_element_wise(*large, pa.scalar("", pa.large_string()))  # pyright: ignore


def _coded(*columns: Texts) -> tuple[pa.Array, list[Rows]]:
    """Return the distinct texts of columns, and each column's codes into them; -1 stays for missing."""
    import pyarrow as pa

    encoded = pa.concat_arrays([column.values for column in columns]).dictionary_encode()
    index = np.append(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), MISSING)
    codes: list[Rows] = []
    start = 0
    for column in columns:
        codes.append(index[np.where(column.codes < 0, MISSING, column.codes + start)])
        start += len(column.values)
    return encoded.dictionary, codes


def _pairs(left: Rows, right: Rows) -> tuple[tuple[Rows, Rows], Int32]:
    """Return the distinct pairs (left, right), sorted, as two columns, and for every row the position of its pair."""
    width = int(right.max(initial=0)) + 1
    keys, position = np.unique(left * width + right, return_inverse=True)
    return (keys // width, keys % width), position.astype(np.int32)
