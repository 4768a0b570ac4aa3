"""Thrift's compact protocol, read only: structs become dicts of field number to value, so that they can be checked.

Parquet describes its columns and pages in it, and what reads Parquet ends the process for some values of a footer.
Format: thrift-compact-protocol.md of apache/thrift.
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 12
MAX_ELEMENTS = 300_000
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_WHOLE = (4, 5, 6)


def read_struct(raw: bytes, at: int = 0) -> tuple[dict[int, Any], int]:
    """Return the struct that begins at a byte, and where it ends.

    Values are int, bool, float (always 0: nobody needs it), bytes, list and dict. Raises ValueError for what is cut
    off, has a field twice, or holds more or deeper than any description of a table does.
    """
    reader = _Reader(raw, at)
    try:
        return reader.struct(0), reader.at
    except IndexError as why:
        raise ValueError(f"a description at byte {at} does not end") from why


class _Reader:
    def __init__(self, raw: bytes, at: int) -> None:
        self.raw, self.at, self.left = raw, at, MAX_ELEMENTS

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise ValueError("a description is nested too deeply")
        out: dict[int, Any] = {}
        name = 0
        while (head := self._byte()) != _STOP:
            name = name + (head >> 4) if head >> 4 else self._zigzag()
            if name in out:
                raise ValueError("a description has a field twice")
            kind = head & 15
            out[name] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return out

    def _value(self, kind: int, depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("a description has too many parts")
        if kind in _WHOLE:
            return self._zigzag()
        if kind in (_BYTE, _TRUE, _FALSE):
            return self._byte()
        if kind == _DOUBLE:
            self._bytes(8)
            return 0.0
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(min(size, self.left + 1))]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError("a description holds what no description of a table has")

    def _byte(self) -> int:
        self.at += 1
        return self.raw[self.at - 1]

    def _bytes(self, n: int) -> bytes:
        self.at += n
        if self.at > len(self.raw):
            raise IndexError
        return self.raw[self.at - n : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("a description has a number of too many bytes")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
