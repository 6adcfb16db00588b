"""What stands before a server of ours: who may call it and how much may be sent, and where it may listen."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from sentences import is_one_sentence
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hyperlens import web
from hyperlens.errors import InputError
from hyperlens.web.guard import POLICY

TOKEN = "a token of eight signs and more".replace(" ", "-")
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
MOST = 1000


async def echo(request):
    return PlainTextResponse(await request.body())


@pytest.fixture(scope="module")
def client():
    app = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in ("/api/echo", "/apis", "/page")])
    return TestClient(web.guard(app, TOKEN, web.name_hosts("127.0.0.1"), MOST), base_url="http://127.0.0.1:8765")


def refuse(client, status: int, *request, **more) -> str:
    answer = client.request(*request, **more)
    assert answer.status_code == status
    assert list(answer.json()["error"]) == ["message", "field"] and is_one_sentence(answer.json()["error"]["message"])
    return answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "given", [{}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer "}]
)
def test_data_are_given_only_for_the_token(client, given):
    assert "token" in refuse(client, 401, "GET", "/api/echo", headers=given)
    assert client.get("/api/echo", headers=RIGHT).status_code == 200


def test_the_word_before_the_token_is_the_same_in_any_case(client):
    for scheme in ("bearer", "BEARER"):
        assert client.get("/api/echo", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
    refuse(client, 401, "GET", "/api/echo", headers={"Authorization": f"Basic {TOKEN}"})


def test_pages_without_data_need_no_token(client):
    assert client.get("/page").status_code == client.get("/apis").status_code == 200


def test_without_a_token_to_ask_for_nobody_is_asked(client):
    app = Starlette(routes=[Route("/api/echo", echo)])
    assert TestClient(web.guard(app, None, ("*",)), base_url="http://any.name").get("/api/echo").status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]", "", "127.0.0.1:99@evil.example",
        "127.0.0.1:1:1", "localhost:", "[::1]evil.example", "[::1]:x",
    ],
)  # fmt: skip
def test_a_page_of_another_name_does_not_reach_the_server(client, name):
    refuse(client, 400, "GET", "/page", headers={"Host": name})
    refuse(client, 400, "GET", "/api/echo", headers={"Host": name, **RIGHT})


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:1", "127.0.0.1:8765", "[::1]:8765"])
def test_the_machine_has_several_names_for_itself(client, name):
    assert client.get("/page", headers={"Host": name}).status_code == 200


def test_a_request_of_the_largest_size_arrives_whole_and_a_larger_one_not_at_all(client):
    content = b"x" * MOST
    assert client.post("/api/echo", headers=RIGHT, content=content).content == content
    assert str(MOST) in refuse(client, 413, "POST", "/api/echo", headers=RIGHT, content=content + b"x")


def test_a_request_that_does_not_say_its_size_is_counted(client):
    def send(count: int):
        return (b"x" * 100 for _ in range(count))

    assert len(client.post("/api/echo", headers=RIGHT, content=send(10)).content) == MOST
    refuse(client, 413, "POST", "/api/echo", headers=RIGHT, content=send(11))


def call_guard(app, path: str, length: bytes) -> list[int]:
    """The statuses that one request is answered with."""

    async def receive():
        pytest.fail("it was read")

    async def send(message):
        sent.append(message)

    sent: list = []
    scope = {"type": "http", "path": path, "headers": [(b"host", b"localhost"), (b"content-length", length)]}
    asyncio.run(web.guard(app, None, ("localhost",), MOST)(scope, receive, send))
    return [message["status"] for message in sent if "status" in message]


@pytest.mark.parametrize("length", [b"1001", b"9" * 5000, b"many"])
def test_nothing_is_read_of_a_request_that_says_it_is_too_large(length):
    assert call_guard(echo, "/api/page", length) == [413]


def test_nothing_is_read_where_no_token_is_asked_for():
    async def app(scope, receive, send):
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert call_guard(app, "/page", b"1000") == [200]


def test_only_so_many_requests_are_answered_at_one_time():
    async def app(scope, receive, send):
        entered.append(scope["path"])
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(path: str) -> int:
        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        sent: list = []
        await guarded({"type": "http", "path": path, "headers": [(b"host", b"localhost")]}, receive, send)
        if sent[0]["status"] == 503:
            assert is_one_sentence(json.loads(sent[1]["body"])["error"]["message"])
        return sent[0]["status"]

    async def ask_many() -> list[int]:
        early = [asyncio.create_task(ask("/api")) for _ in range(2)]
        while len(entered) < 2:
            await asyncio.sleep(0)
        refused = await ask("/api")
        may_end.set()
        return [refused, *await asyncio.gather(*early), await ask("/api"), await ask("/page")]

    entered, may_end = [], asyncio.Event()
    guarded = web.guard(app, None, ("localhost",), most_at_once=2)
    assert asyncio.run(ask_many()) == [503, 200, 200, 200, 200]


def test_nothing_is_read_of_a_request_without_the_token(client):
    refuse(client, 401, "POST", "/api/echo", content=b"x" * (MOST + 1))


def test_every_answer_says_what_a_browser_may_do(client):
    answers = [client.get("/page"), client.get("/api/echo"), client.get("/api/echo", headers=RIGHT), client.get("/none")]
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert [answer.headers["cache-control"] for answer in answers] == ["no-cache", "no-store", "no-store", "no-cache"]


def test_websockets_are_closed(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/echo", headers=RIGHT):
        pass


def test_a_port_is_taken_by_one_server_only():
    with web.open_socket("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        assert web.spell_address("127.0.0.1", opened) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is taken") as refused:
            web.open_socket("127.0.0.1", port)
        assert is_one_sentence(str(refused.value)) and "--port" in str(refused.value)


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("127.0.0.1", 65536, "65535"), ("127.0.0.1", -1, "65535"), ("192.0.2.1", 0, "no address of this machine")],
)
def test_a_place_where_nothing_can_listen_is_refused(host, port, said):
    with pytest.raises(InputError, match=said) as refused:
        web.open_socket(host, port)
    assert is_one_sentence(str(refused.value))


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("0.0.0.0", False), ("192.0.2.1", False)]
)
def test_other_machines_need_a_token_that_the_owner_chose(host, own):
    assert web.is_loopback(host) == own
    web.check_address(host, TOKEN)
    if own:
        web.check_address(host, None)
    else:
        with pytest.raises(InputError, match="--token-file"):
            web.check_address(host, None)


def test_a_server_goes_by_the_name_that_it_was_given():
    assert "192.0.2.1" in web.name_hosts("192.0.2.1") and web.name_hosts("0.0.0.0") == ("*",)
    assert set(web.name_hosts("127.0.0.1")) == {"127.0.0.1", "localhost", "[::1]"}
    assert "[fd00::1]" in web.name_hosts("fd00::1")


def test_a_token_comes_from_a_file_or_else_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("HYPERLENS_TOKEN", raising=False)
    assert web.read_token(None) is None
    monkeypatch.setenv("HYPERLENS_TOKEN", "from-the-environment")
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    assert web.read_token(None) == "from-the-environment"
    assert web.read_token(tmp_path / "token") == TOKEN
    assert len({web.new_token() for _ in range(9)}) == 9 and len(web.new_token()) > 40


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"two words here",
        b"line one\nline two",
        b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe",
        "ümläute-ünd-öthers".encode(),
    ],
)
def test_what_is_no_token_is_refused(tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(InputError) as refused:
        web.read_token(tmp_path / "token")
    assert is_one_sentence(str(refused.value))
    with pytest.raises(InputError, match="cannot be read"):
        web.read_token(tmp_path / "none")


@pytest.mark.timeout(10)
def test_a_token_is_read_of_a_small_file_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_text("x" * 5000)
    for place, said in ((tmp_path / "pipe", "no file"), ("/dev/zero", "no file"), (tmp_path / "large", "larger than 4096")):
        with pytest.raises(InputError, match=said) as refused:
            web.read_token(place)
        assert is_one_sentence(str(refused.value))


# what answers are spelled like


def test_json_is_strict_whatever_is_in_it():
    document = {"text": "a\ud800b", "\udcff": [float("nan"), float("inf"), 0.1, 10**30], "none": None, "pair": (1, True)}
    wanted = {"text": "ab", "": [None, None, 0.1, 10**30], "none": None, "pair": [1, True]}
    assert json.loads(web.spell_json(document), parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == wanted
    assert json.loads(web.spell_json("ü\u2028")) == "ü\u2028"


def test_an_event_is_one_line_below_its_name():
    breaks = "".join(map(chr, (*range(32), 0x7F, 0x85, 0x2028, 0x2029)))
    event = web.spell_event({"text": breaks}, "end")
    assert event.endswith("\n\n") and len(event.splitlines()) == 3
    name, data, _ = event.splitlines()
    assert name == "event: end" and json.loads(data.removeprefix("data: ")) == {"text": breaks}
    assert web.spell_event(None) == "data: null\n\n"
