"""The reward that asks a vision language model, against a real server with every bad habit."""

import base64
import io
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError, RunError
from amd_plugin.rewards.builtin.vlm import KEY, VLMReward, read_score
from amd_plugin.rewards.protocol import to_pil
from amd_plugin.rewards.reward_set import RewardSet

SECRET = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Answers by what the prompt says; counts requests per prompt, and those under way at a time."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.requests, self.busy, self.most = threading.Lock(), [], 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that gave up are what is tested."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"][0]["text"].split("Prompt: ")[1].split("\n")[0]
        with self.server.lock:
            self.server.requests.append((prompt, self.path, dict(self.headers), body))
            seen = sum(request[0] == prompt for request in self.server.requests)
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        try:
            self.answer(prompt, seen)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def answer(self, prompt, seen):
        kind, _, rest = prompt.partition(" ")
        if kind == "status" or (kind == "flaky" and seen < 3):
            return self.reply(b"no", int(rest) if kind == "status" else 503)
        if kind == "drop":
            return self.connection.close()
        if kind == "slow":
            time.sleep(1.5)
        if kind == "raw":
            return self.reply(rest.encode())
        if kind in ("cut", "stall", "garbled"):
            self.send_response(200)
            self.send_header("Content-Length", "4" if kind == "garbled" else "1000")
            self.send_header("Content-Encoding", "gzip" if kind == "garbled" else "identity")
            self.end_headers()
            self.wfile.write(b"{   ")
            self.wfile.flush()
            time.sleep(1.5 if kind == "stall" else 0.0)
            return self.connection.close()
        if kind == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        time.sleep(0.05)
        text = rest if kind == "say" else '{"score": 7}'
        return self.reply(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

    def reply(self, data, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 302:
            self.send_header("Location", "/elsewhere")
        if status == 429:
            self.send_header("Retry-After", "1000")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def judge(server):
    def make(**options):
        return VLMReward(server.url, "judge", **{"backoff": 0.01, "request_timeout": 5.0, **options})

    return make


def pictures(count, *shape):
    return to_pil(torch.rand(count, 3, *(shape or (8, 8)), generator=torch.Generator().manual_seed(0)))


def test_what_is_asked_and_answered(server, judge, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    images = pictures(2)
    assert judge()(images, ["a house", "say 3.5/10"]) == [0.7, 0.35]
    requests = {request[0]: request for request in server.requests}
    _, path, headers, body = requests["a house"]
    assert path == "/v1/chat/completions" and "Authorization" not in headers and body["model"] == "judge"
    text, image = body["messages"][0]["content"]
    assert "from 0 (worst) to 10 (best)" in text["text"]
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == images[0].tobytes()


def test_videos_are_shown_as_frames(server, judge):
    assert judge(frames=3)(pictures(1, 9, 8, 8), ["a film"]) == [0.7]
    assert judge(frames=3)(pictures(1, 1, 8, 8), ["a film"]) == [0.7]
    assert [len(request[3]["messages"][0]["content"]) - 1 for request in server.requests] == [3, 1]


@pytest.mark.parametrize(
    "prompt",
    ["say 11", "say -1", "say nan", "say I cannot judge this", "say", 'say {"score": "high"}', "say 7 or 8",
     'say {"score": 1} {"score": 2}', "raw <html>", "raw {}", 'raw {"choices": []}', 'raw {"choices": [{"message": {"content": null}}]}',
     "raw [1, 2]", "status 404", "status 302", "drop", "cut", "garbled", "status 500"],
)  # fmt: skip
def test_a_sample_with_a_bad_answer_has_no_score(server, judge, prompt):
    assert judge(retries=1)(pictures(3), ["a", prompt, "b"]) == [0.7, None, 0.7]
    assert not any(request[1].endswith("elsewhere") for request in server.requests)


def test_failures_are_tried_again_and_not_for_ever(server, judge):
    assert judge(retries=2)(pictures(2), ["flaky", "a"]) == [0.7, 0.7]
    assert judge(retries=2)(pictures(2), ["status 429", "b"]) == [None, 0.7]
    counts = {prompt: sum(r[0] == prompt for r in server.requests) for prompt in ("flaky", "status 429", "a")}
    assert counts == {"flaky": 3, "status 429": 3, "a": 1}


def test_slow_servers_cost_their_sample(judge):
    began = time.monotonic()
    scores = judge(request_timeout=0.4, retries=0)(pictures(4), ["slow", "drip", "stall", "a"])
    assert scores == [None, None, None, 0.7]
    assert time.monotonic() - began < 60, "it waited for a server that never ends"


def test_when_nothing_is_answered_the_reward_fails(judge, plugins, server):
    with pytest.raises(RunError, match=r"answered none of 2 requests; the first: HTTP 401"):
        judge()(pictures(2), ["status 401", "status 401"])
    with pytest.raises(RunError, match="answered none of 1 requests"):
        VLMReward("http://127.0.0.1:9/v1", "judge", retries=0, request_timeout=2.0)(pictures(1), ["a"])
    assert judge()(pictures(1), ["say nothing"]) == [None]


def test_requests_run_beside_each_other_within_the_limit(server, judge):
    assert judge(concurrency=3)(pictures(9), ["a"] * 9) == [0.7] * 9
    assert 1 < server.most <= 3
    server.most = 0
    assert judge(concurrency=1)(pictures(3), [str(i) for i in range(3)]) == [0.7] * 3
    assert server.most == 1


def test_the_key_goes_to_the_server_and_nowhere_else(server, judge, monkeypatch, caplog, capfd):
    monkeypatch.setenv(KEY, SECRET)
    caplog.set_level(logging.DEBUG)
    reward = judge(retries=1)
    assert reward(pictures(3), ["a", "status 500", "say no"]) == [0.7, None, None]
    with pytest.raises(RunError) as caught:
        reward(pictures(1), ["status 401"])
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for _, _, headers, _ in server.requests)
    printed = capfd.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err + str(caught.value) + repr(vars(reward))
    monkeypatch.setenv(KEY, f"{SECRET}\nX: y")
    with pytest.raises(InputError, match="characters that cannot be sent") as caught:
        judge()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://a/v1", "http:///v1", "http://me:secret@a/v1"])
def test_urls_that_cannot_be_asked(url):
    with pytest.raises(InputError, match="url must be http") as caught:
        VLMReward(url, "judge")
    assert "secret" not in str(caught.value)


def test_by_a_recipe(server, plugins):
    media = torch.rand(2, 3, 8, 8)
    reward = plugins.reward_factory("vlm")(url=server.url, model="judge")
    assert reward(to_pil(media), ["a", "say 0"]) == [0.7, 0.0]
    config = RewardConfig(name="vlm", url=server.url, model="judge", retries=0)
    scores = RewardSet([config], plugins, task=None)(media, ["a", "say what"])
    assert scores.total[0] == pytest.approx(0.7) and scores.total[1].isnan() and not scores.causes


def test_reading_scores():
    for answer in ('{"score": 4}', '```json\n{"score": 4.0}\n```', " 4 ", "4/10", '{"why": "6 of 9", "score": "4"}'):
        assert read_score(answer, 10) == 0.4, answer
    for answer in ("4/5", "four", "", "1e5", '{"score": 10.01}', '{"score": -0.1}', '{"score": 4'):
        assert read_score(answer, 10) is None, answer
