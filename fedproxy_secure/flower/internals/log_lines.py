"""Flower's log lines, made safe to read: another party's text in them cannot look like another line."""

from __future__ import annotations

import logging

from fedproxy_secure.runtime.quoting import one_line

MOST_LINE = 2000  # characters


def log_printable_lines_alone() -> None:
    """Make this process' Flower log each record as one line without escape sequences or control characters.

    Flower 1.41 logs names and types of messages as they came. A line break or an escape sequence in them
    would forge lines, or change the terminal of whoever reads the log.
    """
    from flwr.common.logger import FLOWER_LOGGER

    if not any(isinstance(one, PrintableLine) for one in FLOWER_LOGGER.filters):
        FLOWER_LOGGER.addFilter(PrintableLine())


class PrintableLine(logging.Filter):
    """Replaces a record's text by its printable characters, on one line; it keeps every record.

    The text of an exception, which follows the record, is made one line, too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the record's arguments do not fit; it must not stop its writer
            text = f"{record.msg} {record.args}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {error})"
        record.msg, record.args, record.exc_info = one_line(text, MOST_LINE), (), None
        return True
