"""Conversations as prompts: what was said before an answer, in one form for every dataset of conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_registry.text_pairs import joined

if TYPE_CHECKING:
    import pyarrow as pa

USER, ASSISTANT = "User: ", "Assistant: "
BETWEEN = "\n\n"


def opening(prompt: Any) -> pa.Array:
    """Return the prompts of first turns, an arrow array of strings; null where there is none."""
    return joined(USER, prompt)


def continued(before: Any, answer: Any, prompt: Any) -> pa.Array:
    """Return the prompts of the next turns: what was said before, the answer that was taken up, and the new message.

    Arrow arrays of strings, row by row; null where a part is missing.
    """
    return joined(before, BETWEEN + ASSISTANT, answer, BETWEEN + USER, prompt)


def transcripts(messages: Any) -> tuple[pa.Array, pa.Array]:
    """Return (prompts, first messages) of lists of messages (role, content); null where one is empty or missing.

    The role "user" is the person; any other is the assistant.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(messages, pa.ChunkedArray):
        messages = messages.combine_chunks()
    sizes = pc.list_value_length(messages).fill_null(0).to_numpy(zero_copy_only=False)  # pyright: ignore
    flat = messages.flatten()
    content = pc.struct_field(flat, "content").cast(pa.large_string())  # pyright: ignore
    by_user = pc.equal(pc.struct_field(flat, "role"), "user").fill_null(False)  # pyright: ignore
    lines = joined(pc.if_else(by_user, USER, ASSISTANT), content)  # pyright: ignore[reportAttributeAccessIssue]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    between = pa.scalar(BETWEEN, pa.large_string())
    whole = pc.binary_join(pa.LargeListArray.from_arrays(starts, lines), between)  # pyright: ignore
    there = pa.array(sizes > 0)
    first = content.take(pa.array(np.where(sizes > 0, starts[:-1], 0), mask=sizes == 0))
    return pc.if_else(there, whole, None), first  # pyright: ignore[reportAttributeAccessIssue]


def only_message(column: Any) -> pa.Array:
    """Return the content of a column that holds a message, or a list of one; null where there is not exactly one.

    One public dataset has a list on the preferred side and a message on the other: rendered as text, that is the label.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_struct(column.type):
        return pc.struct_field(column, "content")  # pyright: ignore[reportAttributeAccessIssue]
    sizes = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)  # pyright: ignore
    starts = np.cumsum(sizes) - sizes
    content = pc.struct_field(column.flatten(), "content")  # pyright: ignore[reportAttributeAccessIssue]
    return content.take(pa.array(np.where(sizes == 1, starts, 0), mask=sizes != 1))
