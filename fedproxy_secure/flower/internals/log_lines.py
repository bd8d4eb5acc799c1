"""Flower's log lines, made safe to read: another party's text in them cannot look like another line."""

from __future__ import annotations

import logging

from fedproxy_secure.runtime.quoting import one_line

MOST_LINE = 2000  # characters


def log_printable_lines_alone() -> None:
    """Make Flower log each record of this process as one line without escapes or control characters.

    Flower 1.41 logs names and types of messages as it received them. A line break in them could forge a log
    line, and an escape sequence could change the terminal of whoever reads the log.
    """
    from flwr.common.logger import FLOWER_LOGGER

    if not any(isinstance(log_filter, PrintableLine) for log_filter in FLOWER_LOGGER.filters):
        FLOWER_LOGGER.addFilter(PrintableLine())


class PrintableLine(logging.Filter):
    """Reduces each record to one line of printable characters; it drops no record.

    An exception's text, which would follow the record, becomes part of the line, without the traceback.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the arguments do not fit the format; logging must not raise
            text = f"{record.msg} {record.args}"
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {error})"
        record.msg, record.args, record.exc_info = one_line(text, MOST_LINE), (), None
        return True
