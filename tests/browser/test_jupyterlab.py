"""A real browser: an expert's session in JupyterLab with a restart in the middle, Notebook 7, Voilà; text stays text.

Skipped where playwright or a Chromium is missing: `pip install playwright`; `apt install chromium`, or CHROMIUM=path.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "12_label_with_experts.ipynb"
PICTURES = os.environ.get("DPO_WORKBENCH_PICTURES")  # a folder that takes the screenshots

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab is not installed"),
]

CONTRAST = """(root) => {
  const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
  const parse = (t) => { const m = t.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (e) => { while (e) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] > 0.99) return c; e = e.parentElement } return [255, 255, 255, 1] };
  const found = [];
  const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text.slice(0, 30)]);
  }
  return found;
}"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(command: list[str], port: int, folder: Path):
    """A Jupyter server with settings of its own, until the block ends; labels go to `folder/labels`."""
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "run"}
    env = {**os.environ, "DPO_WORKBENCH_LABELS": str(folder / "labels")}
    env |= {f"JUPYTER_{name}": str(folder / place) for name, place in places.items()}
    env |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("WORKSPACES", "SETTINGS")}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab of its own with the notebook in it; gives its address and the folder of the labels."""
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, tmp_path / NOTEBOOK)
    port = free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path}", "--LabApp.expose_app_in_browser=True", "--ServerApp.allow_root=True",
        "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with serving(command, port, tmp_path):
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}", tmp_path / "labels"


@pytest.mark.parametrize("front", ("notebook", "voila"))
def test_other_front_ends_take_clicks_keys_and_commands(browser, tmp_path, front):
    if importlib.util.find_spec(front) is None:
        pytest.skip(f"{front} is not installed")
    shutil.copy(ROOT / "notebooks" / NOTEBOOK, tmp_path / NOTEBOOK)
    port = free_port()
    more = {
        "notebook": [
            "--no-browser", f"--ServerApp.port={port}", "--IdentityProvider.token=", "--ServerApp.allow_root=True",
            "--JupyterNotebookApp.expose_app_in_browser=True",
            f"--ServerApp.root_dir={tmp_path}",
        ],
        "voila": [str(tmp_path / NOTEBOOK), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"],
    }[front]  # fmt: skip
    with serving([sys.executable, "-m", front, *more], port, tmp_path):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{port}/" + (f"notebooks/{NOTEBOOK}" if front == "notebook" else ""))
        if front == "notebook":
            run_all(page)
        page.get_by_role("button", name="A is better (a)").wait_for()
        vote(page, "A is better (a)")
        vote(page, "b")
        page.get_by_role("button", name="Back (<)").click()
        page.locator("p[role=status]", has_text="Item 2 of").first.wait_for()
        page.get_by_role("button", name="Undo (u)").click()
        status(page, 1)
        page.close()
    events = (tmp_path / "labels" / "mine.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in events] == ["label", "label", "undo"]


KERNEL_READY = """() => { const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return kernel && kernel.connectionStatus === 'connected' && kernel.info.then(() => true) }"""
ALL_RUN = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .every((cell) => cell.model.type !== 'code' || cell.model.executionCount !== null)"""

SHOW_SCREEN = """() => { const book = window.jupyterapp.shell.currentWidget.content;
  const at = book.widgets.findIndex((cell) => cell.model.sharedModel.source.includes('screen = dw.label('));
  book.activeCellIndex = at; book.scrollToItem(at, 'center') }"""


def command(page, name: str, **arguments) -> None:
    page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args) }", [name, arguments])


def run_all(page, restart: bool = False) -> None:
    """Run the notebook to its end, in a fresh kernel where `restart`: while cells run, the page moves under a click."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.wait_for_function(KERNEL_READY)
    command(page, "notebook:clear-all-cell-outputs")
    command(page, "notebook:restart-run-all" if restart else "notebook:run-all-cells")
    if restart:
        page.locator(".jp-Dialog .jp-mod-accept").click()
    page.wait_for_function(ALL_RUN)
    page.evaluate(SHOW_SCREEN)  # JupyterLab takes cells that are far away out of the page
    page.get_by_role("button", name="A is better (a)").scroll_into_view_if_needed()


def status(page, done: int | None = None) -> str:
    """Where the session stands, once it is on the screen; with `done` once it says so many are labelled."""
    count = r"\d+" if done is None else str(done)
    for _ in range(1200):  # the front end draws its outputs anew now and then, so a found element may be gone
        for text in page.locator("p[role=status]").all_text_contents():
            if re.match(rf"Item \d+ of \d+, {count} labelled", text):
                return text
        page.wait_for_timeout(100)
    raise AssertionError(f"the screen never said {count} labelled")


def vote(page, how: str) -> None:
    """One vote, by button or by typing, and wait until the screen counts it."""
    done = int(re.findall(r"(\d+) labelled", status(page))[0])
    page.wait_for_timeout(400)
    if len(how) == 1:
        page.get_by_label("Type here:").fill(how)
    else:
        page.get_by_role("button", name=how).click()
    status(page, done + 1)


def picture(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


def test_an_expert_labels_twenty_pairs_with_a_restart_in_the_middle(browser, lab):
    address, labels = lab
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(120_000)
    page.goto(address)
    run_all(page)
    ways = [
        "A is better (a)",
        "b",
        "Equally good (t)",
        "x",
        "B is better (b)",
        "a",
        "Skip (s)",
        "t",
        "B is better (b)",
        "a",
    ]
    for how in ways:
        vote(page, how)
    picture(page, "label-light")
    file = labels / "mine.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [e["choice"] for e in events] == ["a", "b", "tie", "bad", "b", "a", "skip", "tie", "b", "a"]
    shown = status(page, 10)

    run_all(page, restart=True)
    assert status(page, 10) == shown  # the same pair, in a new kernel
    for how in ways:
        vote(page, how)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) == len({e["item"] for e in events}) == 20

    # a double click takes one vote, not two
    page.wait_for_timeout(400)
    page.get_by_role("button", name="A is better (a)").dblclick()
    page.wait_for_timeout(1500)
    assert len(file.read_text().splitlines()) == 21

    # everything can be reached with Tab, and has a name
    box = page.get_by_role("button", name="A is better (a)").locator(
        "xpath=ancestor::*[contains(@class,'jp-OutputArea')][1]"
    )
    names = set(box.locator("button").all_inner_texts())
    page.get_by_role("button", name="A is better (a)").focus()
    reached = set()
    for key in ("Tab", "Shift+Tab"):
        page.get_by_role("button", name="A is better (a)").focus()
        for _ in range(40):
            reached.add(page.evaluate("() => document.activeElement.innerText || document.activeElement.placeholder"))
            page.keyboard.press(key)
    assert {n for n in names if n} <= reached
    for label in ("Type here:", "Note:"):
        assert page.get_by_label(label).count() == 1

    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        command(page, "apputils:change-theme", theme=theme)
        page.wait_for_timeout(2500)
        low = [(round(ratio, 2), text) for ratio, text in box.evaluate(CONTRAST) if ratio < 4.5]
        assert low == [], theme
    picture(page, "label-dark")
    page.close()


def test_model_text_creates_nothing_in_a_real_browser(browser, tmp_path):
    """Each payload in each function that makes HTML: no element, no request, no dialog."""
    spec = importlib.util.spec_from_file_location("payloads", ROOT / "tests" / "common" / "test_html.py")
    assert spec and spec.loader
    payloads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(payloads)
    import dpo_workbench as dw
    from dpo_workbench.common import html
    from dpo_workbench.labelling import widget as view
    from dpo_workbench.labelling.session import Session

    makers = {"pre": html.pre, "paragraph": html.paragraph, "table": lambda t: html.table([t], [[t]])}
    makers["answer"] = lambda t: view.answer_html(t, f"other {t[::-1]}")
    makers["box"] = lambda t: view.box(view.marked(t, "other"))

    def card(text):
        pair = dw.Pair("p", text + "?", text + "!", "other")
        session = Session([pair], "ann", tmp_path / "l.jsonl")
        session.do(text)
        return "".join(view.card(session).values())

    makers["card"] = card
    allowed = {
        "PRE",
        "P",
        "TABLE",
        "THEAD",
        "TBODY",
        "TR",
        "TH",
        "TD",
        "STRONG",
        "MARK",
        "DETAILS",
        "SUMMARY",
        "H3",
        "H4",
    }
    page = browser.new_page()
    dialogs, requests = [], []
    page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
    page.on("request", lambda r: requests.append(r.url))
    for name, payload in payloads.PAYLOADS.items():
        for maker, make in makers.items():
            page.set_content(f"<div id=host>{make(payload)}</div>")
            page.wait_for_timeout(20)
            tags = set(page.evaluate("() => [...document.querySelectorAll('#host *')].map((e) => e.tagName)"))
            assert tags <= allowed, (name, maker)
            odd = page.evaluate(
                "() => [...document.querySelectorAll('#host *')].flatMap((e) => e.getAttributeNames())"
                ".filter((n) => !['style', 'class', 'role', 'aria-live'].includes(n))"
            )
            assert odd == [], (name, maker)
    assert dialogs == [] and not [r for r in requests if not re.match("about:|data:", r)]
    page.close()
