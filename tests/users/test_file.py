"""The file of users."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtt.errors import UsageError
from mtt.users.file import read_users
from mtt.users.user import User
from tests.support.files import written


def test_users_in_json(tmp_path: Path) -> None:
    users = written(
        tmp_path / "users",
        """
        [{"name": "a", "password": " x "}, // one
         {"name": "b", "password": "y"},]""",
    )
    assert read_users("-users", users) == (User("a", " x "), User("b", "y"))


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "a", "password": "x"}\n{"name": "b", "password": " y "}',
        '# two\n{"name": "a", "password": "x"} // one\n\n{"name": "b", "password": " y "}\n',
        'a:x\n{"name": "b", "password": " y "}\n',
        '{"users": [{"name": "a", "password": "x"}, {"name": "b", "password": " y "}]}',
        '// users\n{\n  "users": [\n{"name": "a", "password": "x"},\n'
        '{"name": "b", "password": " y "}\n]}\n',
        '{"users": {"a": "x", "b": " y "}}',
        '{"users":\n{\n  "a": "x",\n  "b": " y ",\n}}\n',
        '[{"name": "a", "password": "x"}, {"name": "b", "password": " y "}]',
    ],
)
def test_users_in_any_json(content: str, tmp_path: Path) -> None:
    path = written(tmp_path / "users", content)
    assert read_users("-users", path) == (User("a", "x"), User("b", " y "))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no users"),
        ("# nobody\n", "no users"),
        ("[]", "no users"),
        ("a:b\ns3cret\n", "line 2: the colon is missing"),
        ("a:b\n\n:s3cret\n", "line 3: the user has no name"),
        ("a:\n", "line 1: the password is empty"),
        ("a:s3cret\nb:x\na:y\n", "line 3: duplicate user 'a'"),
        ("a:s3cret\n#\nb:s3cret\n", "line 3: 'b' has the same password as 'a'"),
        ("a\x1b:s3cret\n", "control character"),
        ("a" * 300 + ":s3cret\n", "more than 255 bytes"),
        ('[{"name": "a", "password": 5}]', "[0]: name and password must be strings"),
        ('[{"name": "a", "passwd": "s3cret"}]', "[0]: not like"),
        ('[{"name": "a", "password": "s3cret"}, "b"]', "[1]: not like"),
        ('{"name": "a", "passwd": "s3cret"}', "line 1: not like"),
        ('{"name": "a"}', "line 1: the password is empty"),
        ('a:b\n{"name": "a", "password": "s3cret"}', "line 2: duplicate user 'a'"),
        ('a:b\n{"name": "c", "password": "s3cret"', "line 2: not JSON"),
        ('{"username": "c", "password": "s3cret"}', "line 1: not like"),
        ('{"user": "c",\n"pass": "s3cret"}', "not like"),
        ('{"users": [{"name": "a", "password": "x"}, 5]}', "line 1: users[1]: not like"),
        ('{"users": [], "password": "s3cret"}', 'line 1: an object with "users"'),
        ('{"users": {"a": ["s3cret"]}}', "line 1: users: name and password must be strings"),
        ('{"users": []}', "no users"),
        ('[{"name": "a", "password": "x"}, {"name": "a", "password": "s3cret"}]', "[1]: duplicate"),
        ('[{"name": "a"', "line 1, column"),
    ],
)
def test_bad_users(content: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "users", content)
    with pytest.raises(UsageError) as caught:
        read_users("-users", path)
    assert str(caught.value).startswith(f"-users: {path}")
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value).replace(path, "")  # pytest names it after the content
