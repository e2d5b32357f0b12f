from __future__ import annotations

import pytest

from mtt.errors import UsageError
from mtt.options.flags import parse_args, usage
from mtt.options.process import PROCESS_FLAGS, ProcessOptions, process_options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ProcessOptions(10.0, "auto", "text", "info")),
        ("-grace 0", ProcessOptions(grace=0.0)),
        ("-grace=1m30s", ProcessOptions(grace=90.0)),
        ("-loop uvloop", ProcessOptions(loop="uvloop")),
        ("-log json", ProcessOptions(log_format="json")),
        ("-log-level warning", ProcessOptions(log_level="warning")),
        ("-verbose", ProcessOptions(log_level="debug")),
        ("-verbose -log-level debug", ProcessOptions(log_level="debug")),
        ("-verbose=false -log-level error", ProcessOptions(log_level="error")),
    ],
)
def test_options(line: str, expected: ProcessOptions) -> None:
    assert process_options(parse_args(PROCESS_FLAGS, line.split())) == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-grace 10", "-grace: '10' is not a duration; write it with a unit"),
        ("-grace -1s", "-grace: -1s is negative"),
        ("-log xml", "-log: 'xml' is not one of text, json"),
        ("-log-level INFO", "-log-level: 'INFO' is not one of error, warning, info, debug"),
        ("-loop trio", "-loop: 'trio' is not one of auto, asyncio, uvloop"),
        ("-log-level info -verbose", "-verbose is -log-level debug, not info; drop one"),
    ],
)
def test_errors(line: str, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        process_options(parse_args(PROCESS_FLAGS, line.split()))
    assert str(raised.value).startswith(text)


def test_usage_names_the_choices() -> None:
    assert "  -log text|json\n" in usage(PROCESS_FLAGS, "prog", "")
