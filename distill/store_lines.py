"""The line format of a segment file: one trace, its checksum, and what a damaged line still holds.

A line is a trace as a JSON object whose last member is `"_crc":"<8 hex>"`: the CRC-32 of all
bytes before `,"_crc"`.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterator

from distill.records import Trace, TraceKey, dumps, to_row
from distill.thinking import sanitise

log = logging.getLogger(__name__)

_HEAD = re.compile(rb'\{"problem_id":"([^"\\]*)","index":(\d+),"segment":(\d+)[,}]')
# Inside a JSON string every quote is escaped, so no pattern here can be part of a text.
_TAIL = re.compile(rb',"_crc":"([0-9a-f]{8})"\}')
_TAIL_LENGTH = 19
_CUT = b'"finish_reason":"length"'


def encode(trace: Trace) -> bytes:
    """The line of a trace, with its checksum and its end of line."""
    text, broken = sanitise(dumps(to_row(trace)))
    if broken:
        log.warning("trace %s: lone surrogates were replaced by U+FFFD", trace.key)
    body = text[:-1].encode()
    return b'%s,"_crc":"%08x"}\n' % (body, zlib.crc32(body))


def whole(line: bytes) -> bool:
    """Whether a line, without its end, is as it was written."""
    match = _TAIL.fullmatch(line, max(0, len(line) - _TAIL_LENGTH))
    return match is not None and int(match[1], 16) == zlib.crc32(line[:-_TAIL_LENGTH])


def cut(line: bytes) -> bool:
    """Whether the trace of a line ended at a token limit."""
    return _CUT in line


def key_of(line: bytes) -> TraceKey | None:
    """The key of a whole line; None if it is no trace."""
    head = _HEAD.match(line)
    try:
        if head:
            return (head[1].decode(), int(head[2]), int(head[3]))
        row = json.loads(line)
        return (str(row["problem_id"]), int(row["index"]), int(row["segment"]))
    except (ValueError, KeyError, TypeError):
        return None


def salvage(line: bytes) -> Iterator[tuple[int, int]]:
    """Where whole records may lie in a damaged line, as when the byte between two was lost."""
    begin = 0
    for tail in _TAIL.finditer(line):
        start = line.rfind(b'{"problem_id"', begin, tail.start())
        if start >= 0:
            yield start, tail.end()
        begin = tail.end()
