"""The controller's language, against what Go's encoding/json and the original do with it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from mtt.wire.http1 import MAX_HEAD
from mtt_mu_server import api
from mtt_mu_server.api import Add, Ask, Clear, Command, Delete, Page, Ping
from mtt_mu_server.decoding import SLICE, Refused
from mtt_mu_server.user import Statistics, User, fingerprint

ROW = ("h:1", 0, 0, 0)


def parse(body: bytes | str | dict[str, Any]) -> Command:
    if isinstance(body, dict):
        body = json.dumps(body)
    work = api.parse(body.encode() if isinstance(body, str) else body)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            command: Command = stop.value
            return command


def refusal(body: bytes | str | dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        parse(body)
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize(
    ("body", "command"),
    [
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1"}]}', Add({"/p": ROW})),
        (' \r\n\t{ "opt" : 1 , "args_bunch" : [ { "path" : "/p" , "dst" : "h:1" } ] } \n',
         Add({"/p": ROW})),
        ('{"OPT":1,"Args_Bunch":[{"PATH":"/p","Dst":"h:1"}]}', Add({"/p": ROW})),
        ('{"args_bunch":[{"path":"/p","dst":"h:1"}],"opt":1}', Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"g:1"},{"path":"/p","dst":"h:1"}]}',
         Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/q","path":"/p","dst":"g:1","dst":"h:1"}]}',
         Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","path":null}]}', Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","id":"as listed"}]}', Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/\\u00e4 +%4x%","dst":"[::1]:1"}]}',
         Add({"/\u00e4 +%4x%": ("[::1]:1", 0, 0, 0)})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"a|b:1","max_conns":2,"rate":3,"expires":4}]}',
         Add({"/p": ("a|b:1", 2, 3, 4)})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","rate":null,"expires":0}]}',
         Add({"/p": ROW})),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","expires":9223372036854775807}]}',
         Add({"/p": ("h:1", 0, 0, 2**63 - 1)})),
        ('{"opt":2,"args_bunch":[{"path":"/p"},{"path":"/q","dst":"nonsense"},{"path":"/p"}]}',
         Delete(["/p", "/q"], False)),
        ('{"opt":2,"args_bunch":[{"path":"/p"}],"disconnect":true}', Delete(["/p"], True)),
        ('{"opt":2,"args_bunch":[{"path":"/p","rate":"ignored here"}]}', Delete(["/p"], False)),
        ('{"opt":3}', Clear(False)),
        ('{"opt":3,"args_bunch":[{"path":"p"}],"disconnect":false}', Clear(False)),
        ('{"opt":3,"Disconnect":true}', Clear(True)),
        ('{"opt":4}', Page(False, 0, 1000)),
        ('{"opt":4,"offset":5,"limit":7}', Page(False, 5, 7)),
        ('{"opt":5}', Page(True, 0, 1000)),
        ('{"opt":5,"args_bunch":[]}', Page(True, 0, 1000)),
        ('{"opt":5,"args_bunch":[{"path":"/p"}]}', Ask(["/p"])),
        ('{"opt":9}', Ping()),
        ('{"opt":9,"opt":null}', Ping()),
        ('{"opt":3,"opt":9}', Ping()),
        ('{"opt":3,"OPT":9}', Ping()),
        ('{"opt":9,"disconnect":"ignored here","limit":"too"}', Ping()),
        ('{"opt":9,"offset":' + "9" * 5000 + "}", Ping()),
        ('{"opt":9,"offset":1e999,"limit":-0.0}', Ping()),
        ('{"opt":2,"args_bunch":[{"path":"/a?b"}]}', Delete(["/a?b"], False)),
        ('{"opt":4,"offset":9223372036854775807}', Page(False, 2**63 - 1, 1000)),
    ],
)  # fmt: skip
def test_commands(body: str, command: Command) -> None:
    assert parse(body) == command


@pytest.mark.parametrize("opt", [1, 2])
@pytest.mark.parametrize("args", ["", ',"args_bunch":null', ',"args_bunch":[]',
                                  ',"args_bunch":[{"path":"/p"}],"args_bunch":null'])
def test_empty_args(opt: int, args: str) -> None:
    assert refusal(f'{{"opt":{opt}{args}}}') == (200, "empty args")


@pytest.mark.parametrize(
    "body", ["null", " null ", "{}", '{"opt":0}', '{"opt":null}', '{"opt":6}', '{"opt":-1}',
             '{"opt":10,"args_bunch":[{"path":"/p","dst":"h:1"}]}', '{"opt":-9223372036854775808}']
)  # fmt: skip
def test_invalid_opt(body: str) -> None:
    assert refusal(body) == (200, "invalid opt")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"opt":"9"}', "opt"),
        ('{"opt":9.0}', "opt"),
        ('{"opt":9e0}', "opt"),
        ('{"opt":true}', "opt"),
        ('{"opt":9223372036854775808}', "opt"),
        ('{"opt":' + "9" * 5000 + "}", "opt"),
        ('{"opt":"9","opt":9}', "opt"),
        ('{"opt":9,"args_bunch":{}}', "args_bunch"),
        ('{"opt":9,"args_bunch":"x"}', "args_bunch"),
        ('{"opt":9,"args_bunch":[1]}', "args_bunch[0]"),
        ('{"opt":9,"args_bunch":[{},[]]}', "args_bunch[1]"),
        ('{"opt":9,"args_bunch":[{"path":1}]}', "args_bunch[0].path"),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1"},{"path":"/q","dst":2}]}',
         "args_bunch[1].dst"),
        ('{"opt":3,"disconnect":1}', "disconnect"),
        ('{"opt":2,"args_bunch":[{"path":"/p"}],"disconnect":"true"}', "disconnect"),
        ('{"opt":4,"limit":"7"}', "limit"),
        ('{"opt":4,"limit":0}', "limit"),
        ('{"opt":4,"limit":1001}', "limit"),
        ('{"opt":4,"offset":-1}', "offset"),
        ('{"opt":4,"offset":1.0}', "offset"),
        ('{"opt":5,"args_bunch":[' + ",".join(['{"path":"/p"}'] * 1001) + "]}", "args_bunch"),
        ('{"opt":5,"args_bunch":[{"path":"p"}]}', "args_bunch[0].path"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(body: str, field: str) -> None:
    status, reason = refusal(body)
    assert (status, reason.partition(":")[0]) == (400, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", ""), ("path", "p"), ("path", None), ("path", "/\ud800"),
        ("dst", ""), ("dst", None), ("dst", "h"), ("dst", "h:"), ("dst", ":1"), ("dst", "h:0"),
        ("dst", "h:65536"), ("dst", "h:http"), ("dst", "::1:1"), ("dst", "a b:1"),
        ("dst", "http://h:1"), ("dst", "h:1/"), ("dst", "a\nb:1"), ("dst", "a|:1"),
        ("max_conns", -1), ("max_conns", "1"), ("rate", 1.5), ("rate", True), ("expires", -1),
        ("expires", 2**63), ("expires", []),
    ],
)  # fmt: skip
def test_one_invalid_user_fails_the_request(field: str, value: Any) -> None:
    good = {"path": "/p", "dst": "h:1"}
    status, reason = refusal({"opt": 1, "args_bunch": [good, good | {field: value}]})
    assert status == 400
    assert reason.startswith(f"args_bunch[1].{field}: ")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","max_con":1}]}',
         "args_bunch[0].max_con: no such field here; did you mean max_conns?"),
        ('{"opt":1,"args_bunch":[{},{"expire":1}]}',
         "args_bunch[1].expire: no such field here; did you mean expires?"),
        ('{"opt":2,"args_bunch":[{"path":"/p","dsts":null}]}',
         "args_bunch[0].dsts: no such field here; did you mean dst?"),
        ('{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1"}],"Max_Conns":1}',
         "Max_Conns: no such field here; it stands in entries of args_bunch"),
        ('{"opt":2,"args_bunch":[{"path":"/p","disconnect":true}]}',
         "args_bunch[0].disconnect: no such field here; it stands beside args_bunch"),
        ('{"opt":9,"zzzz":[]}', "zzzz: no such field here; "
         "there are args_bunch, disconnect, limit, offset, opt"),
        ('{"opt":9,"x":{"deep":[1]},"y":2}', "x: no such field here; "
         "there are args_bunch, disconnect, limit, offset, opt"),
    ],
)  # fmt: skip
def test_unknown_fields_are_named(body: str, error: str) -> None:
    assert refusal(body) == (400, error)


def test_a_long_unknown_field_is_cut() -> None:
    assert len(refusal({"opt": 9, "x" * 100_000: 1})[1]) < 300


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/a?b", "cut it off at the ?"),
        ("/?", "cut it off at the ?"),
        ("/a#b", "cut it off at the #"),
        ("/%61", "%61 arrives percent-decoded"),
        ("/a%2Fb", "%2F arrives percent-decoded"),
        ("/" + "a" * MAX_HEAD, "longer than a request"),
    ],
)
def test_a_path_that_never_matches_is_refused(path: str, words: str) -> None:
    good = {"path": "/p", "dst": "h:1"}
    status, reason = refusal({"opt": 1, "args_bunch": [good, {"path": path, "dst": "h:1"}]})
    assert status == 400
    assert reason.startswith("args_bunch[1].path: ")
    assert words in reason


def test_listed_users_can_be_added_again() -> None:
    listed = json.loads(api.users_answer(1, [User("/b", "h:2", 1, 2, 3)]))["users"]
    assert parse({"opt": 1, "args_bunch": listed}) == Add({"/b": ("h:2", 1, 2, 3)})


@pytest.mark.parametrize("path", ["", "p"])
def test_a_path_to_delete_starts_with_a_slash(path: str) -> None:
    status, reason = refusal({"opt": 2, "args_bunch": [{"path": "/p"}, {"path": path}]})
    assert (status, reason) == (400, "args_bunch[1].path: it does not start with /")


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"x", b"{", b'{"opt":9', b'{"opt":9}}', b'{"opt":9} x', b'{"opt":9}\0',
        b'{"opt":9,}', b'{,}', b'{"opt"}', b'{"opt":}', b'{opt:9}', b"{'opt':9}", b'{"opt" 9}',
        b'{"opt":09}', b'{"opt":+9}', b'{"opt":0x9}', b'{"opt":NaN}', b'{"x":Infinity,"opt":9}',
        b'{"x":-Infinity,"opt":9}', b'{"opt":9,"x":"\x01"}', b'{"opt":9,"x":"\\x"}',
        b'{"opt":9,"x":"\xff"}', b'\xef\xbb\xbf{"opt":9}', b'{"opt":9 "x":1}', b"[1 2]",
        b'{"args_bunch":[', b'{"args_bunch":[}', b'{"args_bunch":[{}', b'{"args_bunch":[{},]}',
        b'{"args_bunch":[,]}', b'{"args_bunch":[{} {}]}', b'{"args_bunch":[1,]}',
        b'{"opt":9,"x":' + b"[" * 100_000, b"\x0b{}", b'{"opt":9}\xc2\xa0',
    ],
)  # fmt: skip
def test_invalid_json(body: bytes) -> None:
    status, reason = refusal(body)
    assert (status, reason[:14]) == (400, "malformed JSON")


@pytest.mark.parametrize("body", ["[]", '[{"opt":9}]', "9", '"x"', "true", "1.5"])
def test_json_that_is_not_an_object(body: str) -> None:
    assert refusal(body) == (400, "the request is not a JSON object")


def test_large_command_yields_to_the_event_loop() -> None:
    bunch = [{"path": f"/{number}", "dst": "h:1"} for number in range(5000)]
    steps = sum(1 for _ in api.parse(json.dumps({"opt": 1, "args_bunch": bunch}).encode()))
    assert steps >= 2 * 5000 // SLICE


def test_answers_of_the_original() -> None:
    assert api.answer() == b'{"res":1}'
    assert api.answer(current_users=0) == b'{"res":1}'
    assert api.answer(current_users=12) == b'{"res":1,"current_users":12}'
    assert api.error_answer("empty args") == b'{"res":2,"err_string":"empty args"}'


def test_answers_with_users() -> None:
    users = [User("/\u00e4", "h:1"), User("/b", "h:2", 1, 2, 3)]
    assert json.loads(api.users_answer(7, users)) == {
        "res": 1,
        "total": 7,
        "users": [
            {"path": "/\u00e4", "dst": "h:1", "id": fingerprint("/\u00e4")},
            {"path": "/b", "dst": "h:2", "id": fingerprint("/b"),
             "max_conns": 1, "rate": 2, "expires": 3},
        ],
    }  # fmt: skip
    assert json.loads(api.statistics_answer(1, [("/b", Statistics(1, 2, 3, 4, 0))])) == {
        "res": 1,
        "total": 1,
        "users": [{"path": "/b", "id": fingerprint("/b"), "bytes_up": 1, "bytes_down": 2,
                   "total_conns": 3, "last_seen": 4, "open_conns": 0}],
    }  # fmt: skip


def test_any_bytes_give_a_command_or_a_reason() -> None:
    seeds = [
        b'{"opt":1,"args_bunch":[{"path":"/p","dst":"h:1","rate":5},{"path":"/q","dst":"h:2"}]}',
        b'{"opt":2,"args_bunch":[{"path":"/p"}],"disconnect":true}',
        b'{"opt":4,"offset":1,"limit":2}',
    ]
    chance = random.Random(9)
    commands = 0
    for _ in range(9000):
        body = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(body) + 1)
            body[at : at + chance.randint(0, 3)] = chance.choice(
                [b"", b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"9", chance.randbytes(2)]
            )
        try:
            parse(bytes(body))
        except Refused as refused:
            assert refused.status in (200, 400)
            assert json.loads(api.error_answer(str(refused)))["err_string"]
        else:
            commands += 1
    assert commands > 100  # or the bytes were too wild to test anything


def test_same_as_the_standard_decoder_on_whole_documents() -> None:
    """What Python's own decoder takes, apart from its extensions, is taken here."""
    chance = random.Random(5)

    def some(depth: int) -> Any:
        kind = chance.randrange(8 if depth else 5)
        if kind < 5:
            return [None, True, chance.randrange(-9, 9), 0.5, "x\n\u00e4"][kind]
        if kind < 7:
            return [some(depth - 1) for _ in range(chance.randrange(4))]
        return {chance.choice("abc"): some(depth - 1) for _ in range(chance.randrange(4))}

    for _ in range(500):
        document = {"offset": some(3), "opt": 9, "limit": some(3)}
        text = json.dumps(document, indent=chance.choice([None, 1]), ensure_ascii=False)
        assert parse(text) == Ping()
