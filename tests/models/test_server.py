"""Answers from a server: `transformers serve` for what is right, a small server with faults for what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import dpo_workbench as dw
from dpo_workbench import cli
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import server
from dpo_workbench.models.generation import Answer
from dpo_workbench.models.server import ask, connect
from dpo_workbench.tasks.task import Example, Score, Task

PROMPTS = [f"question {k}" for k in range(12)]


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch, tmp_path) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPO_WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(server, "CONCURRENT", 3)
    monkeypatch.setattr(server, "PAUSE", 0.01)


# --- a server with faults --------------------------------------------------------------------------------------------


class Faulty(ThreadingHTTPServer):
    """Answers a prompt with "PROMPT/SEED"; `fault(number of the request, its body)` may answer otherwise."""

    models = ("toy",)
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0, fault=None):
        super().__init__(("127.0.0.1", port), _Handler)
        self.fault, self.bodies, self.headers, self.lock = fault, [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def reply(self, body: dict) -> tuple[int, dict]:
        text = f"{body['messages'][0]['content']}/{body['seed']}"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 10}}

    def asked(self) -> Counter[str]:
        return Counter(b["messages"][0]["content"] for b in self.bodies)

    def handle_error(self, *_) -> None:
        pass  # a client that has left

    def die(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Faulty

    def do_GET(self) -> None:
        if self.server.models is None:
            return self._send(404, "<html>")
        self._send(200, {"data": [{"id": m} for m in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
            number = len(self.server.bodies)
        fault = self.server.fault(number, body) if self.server.fault else None
        self._send(*(fault or self.server.reply(body)))

    def _send(self, status: int, data, headers=()) -> None:
        raw = data.encode() if isinstance(data, str) else json.dumps(data).encode()
        kind = "text/html" if isinstance(data, str) else "application/json"
        if status == 0:  # hang up in the middle of the reply
            status, raw = 200, raw[:9]
            headers = (("Content-Length", "999"),)
        else:
            headers = (*headers, ("Content-Length", str(len(raw))))
        self.send_response(status)
        for key, value in (("Content-Type", kind), *headers):
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def faulty():
    """Makes servers, and shuts them down."""
    made = []

    def make(fault=None, port: int = 0) -> Faulty:
        made.append(Faulty(port, fault))
        return made[-1]

    yield make
    for one in made:
        one.die()


def wanted(prompts, samples: int = 1, seed: int = 0) -> list[list[str]]:
    first = seed * 1_000_003
    return [[f"{p}/{first + i * samples + k}" for k in range(samples)] for i, p in enumerate(prompts)]


def texts(answers: list[list[Answer]]) -> list[list[str]]:
    return [[a.text for a in drawn] for drawn in answers]


def test_every_prompt_is_asked_once_and_answered_in_its_place(faulty) -> None:
    def late(number: int, body: dict) -> None:  # replies overtake each other
        time.sleep(0.05 if number % 3 == 1 else 0)

    one, counts = faulty(late), []
    got = ask(*connect(one.url, "toy"), PROMPTS, max_new_tokens=7, seed=2, on_answers=counts.append)
    assert texts(got) == wanted(PROMPTS, seed=2) and one.asked() == Counter(PROMPTS)
    assert sum(counts) == 12
    assert {(a.n_tokens, a.finished) for (a,) in got} == {(10, True)}
    body = one.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy", 0.0, 7)
    assert body["messages"] == [{"role": "user", "content": body["messages"][0]["content"]}]


def test_no_more_than_so_many_at_one_time(faulty) -> None:
    now, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(server.CONCURRENT)  # 12 prompts come in four lots of three

    def count(number: int, body: dict) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(10)
        time.sleep(0.1)  # a fourth would be seen
        with lock:
            now[0] -= 1

    ask(*connect(faulty(count).url, "toy"), PROMPTS)
    assert most[0] == server.CONCURRENT


def test_each_sample_is_a_request_with_its_own_seed(faulty) -> None:
    one = faulty()
    got = ask(*connect(one.url, "toy"), PROMPTS, samples=4, temperature=0.5)
    assert texts(got) == wanted(PROMPTS, 4) and one.asked() == Counter(dict.fromkeys(PROMPTS, 4))


def test_cut_off_answers_and_tokens(faulty) -> None:
    def reply(number: int, body: dict):
        end = "length" if body["messages"][0]["content"] == "p" else "stop"
        return 200, {
            "choices": [{"message": {"content": "ab"}, "finish_reason": end}],
            "usage": {"completion_tokens": number},
        }

    one = faulty(reply)
    assert ask(*connect(one.url, "toy"), ["p"]) == [[Answer("ab", 1, False)]]
    assert ask(*connect(one.url, "toy"), ["q"]) == [[Answer("ab", 2, True)]]


@pytest.mark.parametrize("fault", [(500, {}), (503, "<html>"), (429, {}), (0, {"a": 1})])
def test_passing_faults_are_tried_again(faulty, fault) -> None:
    """Two errors in a row, then a good reply; the last one is a reply that breaks off."""
    tries: Counter[str] = Counter()

    def twice(number: int, body: dict):
        prompt = body["messages"][0]["content"]
        tries[prompt] += 1
        return fault if tries[prompt] <= 2 else None

    one = faulty(twice)
    assert texts(ask(*connect(one.url, "toy"), PROMPTS[:4])) == wanted(PROMPTS[:4])
    assert one.asked() == Counter(dict.fromkeys(PROMPTS[:4], 3))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((500, {"error": "out of order"}), "To 'p' it says: 500 .*out of order.* Look at its log"),
        ((429, {}), "429.*Send fewer requests"),
        ((401, {"error": "no key"}), "401.*Set OPENAI_API_KEY"),
        ((404, {"error": "no model toy"}), "404 .*no model toy.*Check the model's name"),
        ((200, "<html>Welcome</html>"), "must reply with choices.*Got '<html>Welcome</html>'.*ending in /v1"),
        ((200, {"object": "x"}), "must reply with choices"),
        ((200, {"choices": []}), "must reply with choices"),
        ((200, []), "must reply with choices"),
        ((200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}), "must reply with choices"),
        ((200, {"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}), "must reply.*abort"),
        ((200, {"choices": [{"message": {"content": "a"}, "finish_reason": []}]}), "must reply with choices"),
        ((200, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}), "with usage.completion_tokens"),
        ((200, "[" * 100_000), "must reply with choices"),
    ],
)
def test_lasting_faults_say_what_to_do(faulty, monkeypatch, fault, words: str) -> None:
    monkeypatch.setattr(server, "RETRIES", 1)
    one = faulty(lambda number, body: fault)
    one.models = ("toy", "other")
    with pytest.raises(WorkbenchError, match=words) as caught:
        ask(*connect(one.url, "toy"), ["p"])
    assert len(str(caught.value)) < 900
    assert len(one.bodies) == (2 if fault[0] in (500, 429) else 1)


def test_nothing_listens_or_nothing_comes(faulty, monkeypatch) -> None:
    monkeypatch.setattr(server, "RETRIES", 1)
    gone = faulty()
    gone.die()
    for model in ("toy", None):
        with pytest.raises(WorkbenchError, match=r"must listen at http://127.*refused.*Start one"):
            ask(*connect(gone.url, model), ["p"])
    monkeypatch.setattr(server, "TIMEOUT", 0.5)
    hangs = faulty(lambda number, body: time.sleep(3))
    with pytest.raises(WorkbenchError, match="must answer. To 'p' it says: TimeoutError: timed out.* wait longer"):
        ask(*connect(hangs.url, "toy"), ["p"])
    assert len(hangs.bodies) == 2


@pytest.mark.parametrize("end", ["a request fails", "the user interrupts"])
def test_an_error_or_an_interrupt_does_not_wait_for_the_other_requests(faulty, end: str) -> None:
    """The first request ends the call while two others hang; no further request is sent."""
    hold = threading.Event()

    def fault(number: int, body: dict):
        if number < 3:
            hold.wait(20)
        elif end == "a request fails":
            return 400, {}
        else:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            hold.wait(20)

    one, start = faulty(fault), time.monotonic()
    with pytest.raises(KeyboardInterrupt if end == "the user interrupts" else WorkbenchError):
        ask(*connect(one.url, "toy"), PROMPTS)
    assert time.monotonic() - start < 10 and len(one.bodies) <= 4
    hold.set()


# --- which model answers, and what must stay secret ------------------------------------------------------------------


def test_the_only_model_is_taken_and_of_several_one_must_be_named(faulty) -> None:
    one = faulty()
    assert connect(one.url + "/", None) == (one.url, "toy")
    assert connect(one.url, "what I say")[1] == "what I say"  # a list may be incomplete
    one.models = ("a", "b")
    with pytest.raises(WorkbenchError, match="must be the name that the server gives it.* lists a, b"):
        connect(one.url, None)
    for one.models in ((), None):  # an empty list, or no list at all
        assert connect(one.url, "toy") == (one.url, "toy")
        with pytest.raises(WorkbenchError, match="lists none"):
            connect(one.url, None)


def test_a_handle_is_refused(moved) -> None:
    """The server would answer without its adapter."""
    with pytest.raises(WorkbenchError, match="must be the name that the server gives it.*serve it under a name"):
        server.draw(moved, ["p"], engine="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "engine",
    ["", "vllm", "ftp://x/v1", "http://", "http://x:port/v1", "http://u:hunter2@x/v1", "http://x/v1?key=hunter2"],
)
def test_what_is_no_address_or_holds_a_secret_is_refused(engine: str) -> None:
    with pytest.raises(WorkbenchError, match="must be a server's address") as caught:
        connect(engine, "toy")
    assert "hunter2" not in str(caught.value)


def test_the_key_is_sent_and_never_shown(faulty, monkeypatch, tmp_path, toy_task) -> None:
    monkeypatch.setattr(server, "RETRIES", 0)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2\n")
    one = faulty(lambda number, body: (401, {"error": "bad key sk-hunter2"}) if number == 3 else None)
    with pytest.raises(WorkbenchError, match=r"bad key \*\*\*") as caught:
        dw.mine("toy", toy_task.train, 2, engine=one.url, show=False)
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None
    found = dw.mine("toy", toy_task.train, 2, engine=one.url, show=False)
    assert "hunter2" not in found.save(tmp_path / "mined.json").read_text() + repr(found)
    assert {h["authorization"] for h in one.headers} == {"Bearer sk-hunter2"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk hunter2")
    with pytest.raises(WorkbenchError, match="must be one word") as caught:
        ask(*connect(one.url, "toy"), ["p"])
    assert "hunter2" not in str(caught.value)


# --- mine and evaluate -----------------------------------------------------------------------------------------------


def test_mine_and_evaluate_say_where_the_answers_come_from(faulty, tmp_path) -> None:
    def score(example: Example, answer: str) -> Score:
        return Score(1.0) if answer.startswith(example.prompt + "/") else Score(0.0, "wrong")

    task = Task(
        "toy", {s: [Example(f"{s}{k}", f"{s} {k}", "", f"{s}{k}") for k in range(5)] for s in ("train", "dev")}, score
    )
    one = faulty()
    found = dw.mine(None, task.train, 3, temperature=0.7, seed=4, engine=one.url, show=False)
    assert [e.id for e, _ in found.rows] == [f"train{k}" for k in range(5)] and found.n_samples == 15
    assert not found.failures and {b["temperature"] for b in one.bodies} == {0.7}
    assert (found.settings["engine"], found.settings["model"]) == (one.url, "toy")
    done = dw.evaluate("toy", task.dev, engine=one.url, show=False)
    assert (done.name, done.model, done.decoding["engine"], done.n_failed) == ("toy", "toy", one.url, 0)
    assert done.mean_tokens == 10 and dw.Evaluation.load(done.save(tmp_path / "e.jsonl")) == done
    with pytest.raises(WorkbenchError, match="repetition_penalty"):
        dw.evaluate("toy", task.dev, engine=one.url, repetition_penalty=1.2, show=False)
    with pytest.raises(WorkbenchError, match="Several samples need a temperature above 0"):
        dw.mine("toy", task.train, 2, temperature=0.0, engine=one.url, show=False)
    for model in ("toy", None):
        with pytest.raises(WorkbenchError, match="Without an engine `model` must be a loaded model"):
            dw.mine(model, task.train, 2, show=False)


def test_the_command_line(faulty, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    monkeypatch.setattr(server, "RETRIES", 0)
    one = faulty()

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dpo-workbench", *arguments, "--engine", one.url])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, "".join(capsys.readouterr())

    code, out = run("mine", "--out", "m", "-n", "3", "--samples", "2")
    assert code == 0 and "3 prompts, 6 samples" in out and (tmp_path / "m" / "pairs.jsonl").is_file(), out
    code, out = run("evaluate", "--out", "e.jsonl", "-n", "2", "--model", "named")
    assert code == 0 and "named: receipts/dev, 2 answers" in out, out
    assert {b["model"] for b in one.bodies} == {"toy", "named"}
    for more, words in (
        (("-a", "receipts"), "--adapter receipts"),
        (("--target", "loop"), "--target continues answers"),
    ):
        code, out = run("mine", "--out", "m", *more)
        assert code == 1 and words in out, out
    one.fault = lambda number, body: (500, "broken by sk-hunter2")
    code, out = run("evaluate", "--out", "f/e.jsonl", "-n", "2")
    assert code == 1 and "500 broken by ***" in out and "hunter2" not in out


# --- `transformers serve` --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tiny_folder, tmp_path_factory):
    """Address of `transformers serve` with the tiny model, written as docs/server.md says, and its name there."""
    folder = tmp_path_factory.mktemp("served")
    model = dw.load_model(tiny_folder, device="cpu", dtype=torch.float32)
    settings = model.network.generation_config
    settings.do_sample, settings.top_k, settings.top_p = True, 0, 1.0
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--port", str(port)]
    options = ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command + options,
            stdout=file,
            stderr=file,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder), "OMP_NUM_THREADS": "1"},
        )
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.kill()
        process.wait()


LIMIT = 24


@pytest.mark.slow
def test_greedy_answers_are_those_of_generate(served, tiny) -> None:
    """Text, tokens and end. The server calls an answer cut off whose end token is the last one allowed."""
    url, name = served
    want = dw.generate(tiny, PROMPTS, max_new_tokens=LIMIT)
    got = ask(*connect(url, name), PROMPTS, max_new_tokens=LIMIT)
    assert [(a.text, a.n_tokens) for (a,) in got] == [(a.text, a.n_tokens) for (a,) in want]
    assert [a.finished for (a,) in got] == [a.finished and a.n_tokens < LIMIT for (a,) in want]
    assert {a.finished for (a,) in got} == {True, False} and len({a.text for (a,) in got}) > 6


@pytest.mark.slow
def test_samples_of_a_real_server_differ(served) -> None:
    url, name = served
    got = ask(*connect(url, name), PROMPTS[:3], samples=3, temperature=1.0, max_new_tokens=LIMIT)
    assert [len(drawn) for drawn in got] == [3] * 3 and len({a.text for drawn in got for a in drawn}) > 3


@pytest.mark.slow
def test_a_real_server_without_that_model(served) -> None:
    url, _ = served
    with pytest.raises(WorkbenchError, match="To 'p' it says: 400 .*requested 'nobody/nothing'"):
        ask(*connect(url, "nobody/nothing"), ["p"])
    with pytest.raises(WorkbenchError, match="lists none"):
        connect(url, None)
