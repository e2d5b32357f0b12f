"""JSON as people write it."""

from __future__ import annotations

from mtt.options.json_text import parse_json


def test_json_with_comments_and_trailing_commas() -> None:
    text = """
    # one
    {
      "a": "// no comment, /* nor this */ # nor that,]", // two
      "b": [1, 2, /* three
      and a half */ ],
      "c": "\\"//", "d": {"e": null,},
    } // the end"""
    assert parse_json("x", text) == {
        "a": "// no comment, /* nor this */ # nor that,]", "b": [1, 2], "c": '"//',
        "d": {"e": None},
    }  # fmt: skip
