"""The viewer in a real browser: its overview, study, comparison and live page, what they say, do, refuse and save."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browsing import TOKEN, open_chromium, serve_runs
from fabricated import make_table, save_run

import hyperlens as hl
from hyperlens.artefact import to_json
from hyperlens.runs.run import sum_up

WITHOUT_WEBGL = ("--disable-gpu", "--disable-3d-apis")
"""Every test runs in a browser that has no WebGL."""
EVIL = "%{x}<b>x</b><img src=x onerror=alert(1)>\x1b[31m\u202e"
SHOWN = "%{x}<b>x</b><img src=x onerror=alert(1)>\\u001b[31m\\u202e"
"""What the page shows of it: nothing in it acts, nothing in it is hidden."""
ASKED = "<!--<script>alert(2)</script>\x1b[2J What is"
OTHER = re.compile(r"(Finished after|Saved with).*|← Previous\n[^\n]*\nNext →\n|All samples\n")
"""What a saved page says in other words, or has no more: the ways to samples that were not saved."""
STATIC = Path(hl.__file__).parent / "viewer" / "static"
LAYERS = 4
DEPTH = 1
RUNS = ("before", "after", "growing", "<script>alert(3)<", "newer")
"""Folders in the order of their numbers. The fourth has the evil names, the last is of a format to come."""
PAGES = {
    "overview": "page=overview",
    "study": "page=study&run=0",
    "compare": "page=compare&before=0&after=1&task=sums&sample=3",
    "live": "page=live",
}


class Speaker(BaseHTTPRequestHandler):
    """A `hyperlens serve` that says what a test wants: `count` tokens, one each `pause` seconds."""

    pause, count, refusal, left = 0.0, 6, "", threading.Event()

    def do_GET(self):
        known = {"model": EVIL, "layers": LAYERS, "focal_depth": DEPTH, "stride": 1, "candidates": None, "chat": False}
        self._answer(200, json.dumps(known | {"limits": {"new_tokens": 500}}), "application/json")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if Speaker.refusal:
            return self._answer(413, json.dumps({"error": {"message": Speaker.refusal}}), "application/json")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for index in range(Speaker.count):
                self._send({"choices": [{"text": "", "hyperlens": {"tokens": [say_token(index)]}}]})
                time.sleep(Speaker.pause)
            self._send({"choices": [], "hyperlens": {"summary": {"tokens": Speaker.count, "effort": 0.375, "confidence": 0.5}}})
        except OSError:
            Speaker.left.set()

    def _send(self, document: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

    def _answer(self, status: int, text: str, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


def say_token(index: int) -> dict[str, Any]:
    """A token as a server describes it, every second one an attack."""
    text = f" {EVIL}" if index % 2 else f" word{index}"
    reading = {
        "states": [0, 1, 2, 3],
        "confidence": [0.1, 0.2, 0.4, 0.8],
        "effort": 0.25 + 0.05 * index,
        "onset": 1,
        "commit": 3,
    }
    return {"index": index, "token_id": index, "text": text, "output_probability": 0.8, "top": [], **reading}


@dataclass
class Seen:
    """A page in a browser of its own, and what went wrong in it."""

    page: Any
    wrong: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def go(self, fragment: str) -> None:
        """Another address in the same page, and until it is drawn."""
        self.page.evaluate("fragment => { location.hash = fragment; }", fragment)
        self.settle()

    def settle(self) -> None:
        """Until what the page shows is drawn, its figures too."""
        self.page.wait_for_function(
            "() => document.querySelector('main h1') && !document.querySelector('[aria-busy]')"
            " && [...document.querySelectorAll('main figure')].every(one => one.children.length)"
        )

    @property
    def text(self) -> str:
        return self.page.inner_text("main")

    def state(self) -> dict[str, str]:
        """The state in the address."""
        return dict(pair.split("=", 1) for pair in self.page.url.partition("#")[2].split("&") if pair)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that nobody measured: a pair, one that is being written, one with evil names, one of a format to come."""
    root = tmp_path_factory.mktemp("shown")
    table = make_table(24, ("sums", "facts"), (1, 2, 3))
    after = table.assign(
        confidence=table["confidence"] + 0.2, effort=table["effort"] - 0.1, correct=np.arange(len(table)) % 3 == 0
    )
    save_run(root / RUNS[0], table.assign(correct=True), "model")
    save_run(root / RUNS[1], after, "model")
    save_run(root / RUNS[2], table, "model", shard_samples=8)
    stop_writing(root / RUNS[2])
    save_run(root / RUNS[3], make_table(6, (f"sums {EVIL}",)), f"model {EVIL}", asked=ASKED)
    for name in (RUNS[0], RUNS[3]):
        write_results(root / name)
    shutil.copytree(root / RUNS[0], root / RUNS[4])
    manifest = root / RUNS[4] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    return root


def write_results(folder: Path) -> None:
    """Sum a fabricated run up as the end of a study does."""
    (folder / "results.json").write_text(to_json(sum_up(hl.open_run(folder).store)), encoding="utf-8")


def stop_writing(folder: Path) -> None:
    """Leave a run as it was before its last shard: `finish_writing` ends it."""
    (folder / "COMPLETE").rename(folder.parent / "COMPLETE.kept")
    last = sorted((folder / "shards").glob("*/*.json"))[-1]
    last.rename(folder.parent / f"{last.parent.name}.kept")


@pytest.fixture(scope="module")
def speaker() -> Iterator[str]:
    """The address of a server that generates."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Speaker)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def served(folders: Path, speaker: str) -> Iterator[str]:
    """The address of a viewer of all these runs."""
    with serve_runs(*(folders / name for name in RUNS), live=speaker) as address:
        yield address.rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, or none and a reason."""
    with open_chromium(*WITHOUT_WEBGL) as opened:
        yield opened


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """What all pages share, so that what never changes is loaded once."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(15_000)
    yield context
    context.close()


@contextmanager
def look(context: Any, address: str) -> Iterator[Seen]:
    """A page at an address. What it writes to its console, and every dialog that it opens, is an error."""
    seen = Seen(context.new_page())
    seen.page.on("console", lambda message: seen.wrong.append(message.text) if message.type in ("error", "warning") else None)
    seen.page.on("pageerror", lambda error: seen.wrong.append(str(error)))
    seen.page.on("dialog", lambda dialog: (seen.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    seen.page.goto(address)
    yield seen
    seen.page.evaluate("() => { try { localStorage.clear(); } catch {} }")
    seen.page.close()
    assert [one for one in seen.wrong if not any(said in one for said in seen.expected)] == []


@pytest.fixture
def seen(context: Any, served: str) -> Iterator[Seen]:
    """The viewer with its token, at the overview."""
    with look(context, f"{served}/#token={TOKEN}") as seen:
        seen.settle()
        yield seen


def rows(seen: Seen, name: str) -> list[list[str]]:
    """The cells of the table whose name begins so."""
    script = "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return seen.page.locator(f'table[aria-label^="{name}"]').evaluate(script)


def test_the_token_leaves_the_address_and_stays_with_the_tab(seen, served):
    assert "token" not in seen.page.url
    assert TOKEN not in seen.page.evaluate("() => JSON.stringify([localStorage, document.cookie])")
    assert all("token" not in link for link in seen.page.eval_on_selector_all("a", "links => links.map(link => link.href)"))
    seen.page.reload()
    seen.settle()
    assert "5 runs" in seen.text


def test_a_tab_that_a_link_opens_has_the_token_of_the_first(seen, context):
    link = seen.page.get_by_role("link", name="study of", exact=False).first
    with context.expect_page() as opening:
        link.click(modifiers=["Control"])
    other = opening.value
    other.wait_for_selector("h2:has-text('Effort')")
    assert "token" not in other.url
    other.close()


def test_without_a_token_the_page_asks_for_it_until_it_is_right(context, served):
    with look(context, f"{served}/#page=study&run=0") as seen:
        seen.expected = ("401",)
        for token in ("wrong", TOKEN):
            seen.page.get_by_label("Token").fill(token)
            seen.page.get_by_role("button", name="Open").click()
            seen.page.wait_for_timeout(50)
        seen.page.get_by_role("heading", name="Effort Ω by task and level").wait_for()
        assert seen.state()["page"] == "study"


def test_the_overview_shows_every_run_with_its_state_and_the_reason_of_one_that_cannot_be_read(seen):
    found = rows(seen, "Runs")
    assert [row[1].split("\n")[0] for row in found] == ["finished", "finished", "unfinished", "finished", "unreadable"]
    assert "5 of 6 shards" in found[2][1]
    assert "written by a newer HyperLens" in found[4][1]
    assert found[0][4] == "48"
    assert ["compare" in row[6] for row in found] == [True, True, False, True, False]
    assert seen.page.get_by_role("progressbar").count() == 1


def test_an_unfinished_run_is_asked_for_again_until_it_has_ended(context, served, folders):
    growing = folders / RUNS[2]
    with look(context, "about:blank") as seen:
        seen.page.clock.install()
        seen.page.goto(f"{served}/#token={TOKEN}")
        seen.settle()
        seen.page.clock.run_for(3100)
        assert "5 of 6 shards" in rows(seen, "Runs")[2][1]
        kept = next(folders.glob("*facts*.kept"))
        shutil.copy(kept, next((growing / "shards").glob("*facts*")) / "00002.json")
        shutil.copy(folders / "COMPLETE.kept", growing / "COMPLETE")
        try:
            seen.page.clock.run_for(3100)
            seen.page.wait_for_selector(".badge.running", state="detached")
            assert "Finished" in seen.page.inner_text("#said")
        finally:
            (growing / "COMPLETE").unlink()
            (next((growing / "shards").glob("*facts*")) / "00002.json").unlink()


def test_the_study_shows_the_numbers_of_the_server_as_table_and_figure(seen):
    seen.go("page=study&run=0&depth=0")
    assert seen.page.locator(".plot svg.main-svg").count() >= 3
    assert seen.page.locator(".plot canvas").count() == 0
    assert len(rows(seen, "Effort, accuracy")) == 6
    effort = seen.page.evaluate(
        "token => fetch('/api/runs/0/effort', {headers: {Authorization: `Bearer ${token}`}}).then(answer => answer.json())",
        TOKEN,
    )
    first = next(row for row in effort["rows"] if row["depth"] == 0)
    shown = next(row for row in rows(seen, "Effort, accuracy") if row[:2] == [first["task"], str(first["level"])])
    assert shown[3] == f"{first['effort']:.2f} [{first['low']:.2f}, {first['high']:.2f}]"


def test_another_focal_depth_is_in_the_address_and_back_undoes_it(seen):
    seen.go("page=study&run=0&depth=0")
    seen.page.get_by_label("Focal depth", exact=True).select_option("2")
    seen.page.wait_for_selector('table[aria-label*="m = 2"]')
    assert seen.state()["depth"] == "2"
    seen.page.go_back()
    seen.page.wait_for_selector('table[aria-label*="m = 0"]')
    seen.page.go_forward()
    seen.page.wait_for_selector('table[aria-label*="m = 2"]')
    seen.page.go_back()
    seen.page.go_back()
    seen.page.wait_for_selector("h1:has-text('Runs')")


def test_an_unfinished_study_is_shown_so_far(seen):
    seen.go("page=study&run=2")
    assert "State unfinished" in seen.text
    assert "5 of 6 shards, shown so far" in seen.text


def test_a_study_that_is_asked_for_again_leaves_its_choices_as_they_are(context, served):
    with look(context, "about:blank") as seen:
        seen.page.clock.install()
        seen.page.goto(f"{served}/#token={TOKEN}")
        seen.go("page=study&run=2")
        seen.page.get_by_label("Focal depth", exact=True).evaluate("choice => { choice.dataset.mine = 'yes'; }")
        with seen.page.expect_response("**/api/runs/2"):
            seen.page.clock.run_for(5100)
        seen.page.wait_for_timeout(50)
        assert seen.page.locator("select[data-mine]").count() == 1


def test_a_study_and_its_saved_file_have_the_name_of_the_run(seen):
    seen.go("page=study&run=0")
    name = seen.page.inner_text("h1")
    assert seen.page.title() == f"Study {name} · HyperLens"


def test_the_comparison_gives_verdicts_changes_and_the_samples_that_broke(seen):
    seen.go("page=compare&before=0&after=1")
    assert seen.page.locator(".verdict.alarm").count() >= 1
    assert "blind confidence" in seen.text
    assert rows(seen, "After − before")[0][0] == "all samples"
    assert rows(seen, "After − before")[0][4].startswith("▲ 0.200")
    assert len(rows(seen, "20 of 32")) == 20
    assert seen.page.locator(".plot svg.main-svg").count() >= 3


def test_the_sides_are_chosen_and_swapped_in_the_address(seen):
    seen.go("page=compare&before=0&after=1")
    seen.page.get_by_role("button", name="Swap").click()
    seen.page.wait_for_function("() => location.hash.includes('before=1')")
    seen.settle()
    assert rows(seen, "After − before")[0][4].startswith("▼ −0.200")
    seen.expected = ("400",)
    seen.page.get_by_label("After", exact=True).select_option("2")
    sentence = seen.page.wait_for_selector("[role=alert]").inner_text()
    assert "has read sums, facts" in sentence
    assert SHOWN in sentence


def test_what_the_address_names_and_cannot_be_compared_or_read_is_named_and_never_replaced(seen):
    for asked, sentence in (
        ("page=compare&before=77&after=1", 'There is no run "77"'),
        ("page=compare&before=0&after=2", "is unfinished"),
        ("page=compare&before=0&after=4", "cannot be read"),
        ("page=compare&before=0&after=0", "the same model of the same run"),
        ("page=compare&before=0&before_model=tiny&after=1", 'has no model "tiny"; it has model.'),
        ("page=study&run=0&model=tiny", 'has no model "tiny"; it has model.'),
        ("page=samples&run=0&model=tiny", 'has no model "tiny"; it has model.'),
        ("page=explorer&run=0&lens=tiny", 'has no lens "tiny"; it has '),
    ):
        seen.go(asked)
        assert sentence in seen.page.inner_text("[role=alert]"), asked
    seen.go("page=compare&before=77&after=1")
    assert seen.page.locator(".verdict").count() == 0
    seen.page.get_by_label("Before", exact=True).select_option("0")
    seen.page.wait_for_selector(".verdict")


def test_marks_at_no_change_stand_inside_their_figure(seen):
    seen.go("page=compare&before=0&after=1")
    script = """all => all.map(one => [one, one.closest('.plot').querySelector('.nsewdrag')])
        .map(pair => pair.map(one => one.getBoundingClientRect()))
        .filter(([mark, plane]) => mark.left < plane.left || mark.right > plane.right).length"""
    assert seen.page.locator(".plot .point").count() > 9
    assert seen.page.locator(".plot .point").evaluate_all(script) == 0


def test_a_sample_that_broke_is_seen_side_by_side_with_the_difference(seen):
    seen.page.route("**/api/runs/1/sample?*", answer_otherwise)
    seen.go("page=compare&before=0&after=1")
    link = seen.page.locator("a[data-sample^='sums/']").first
    link.click()
    seen.page.wait_for_selector("#pair h3:has-text('Difference')")
    assert seen.page.locator("#pair [role=application]").count() == 3
    assert seen.page.locator("tr.chosen a[aria-current=true]").count() == 1
    seen.page.locator("#pair [role=listbox] [role=option]").first.click()
    seen.page.wait_for_function("() => location.hash.includes('token=0')")
    planes = seen.page.locator("#pair .plane").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len({*planes}) == 1, "states of one number stand at one height"
    assert re.search(
        r"Token 0, “model\d+→Finn”: Ω .* → .* · confidence at state \d: .* → ", seen.page.inner_text("#pair .readout")
    )
    assert seen.page.locator("#pair [role=option][aria-selected=true]").count() == 2
    seen.page.locator("#pair [role=application]").first.press("ArrowDown")
    seen.page.wait_for_function("() => /layer=1/.test(location.hash)")


def answer_otherwise(route: Any) -> None:
    """The sample as it was read, but for what the model says there."""
    answer = route.fetch()
    sample = answer.json()
    for token in sample["tokens"]:
        token["reference"] = "Finn"
    route.fulfill(response=answer, json=sample)


def test_tokens_of_the_live_page_appear_in_the_colour_of_their_effort(seen):
    Speaker.count, Speaker.pause = 6, 0.0
    seen.go("page=live")
    seen.page.get_by_label("Prompt").fill(EVIL)
    seen.page.get_by_role("button", name="Generate").click()
    seen.page.wait_for_selector("text=Finished after 6 tokens.")
    assert seen.page.locator("[role=listbox] [role=option]").count() == 6
    assert "Ω, mean 0.375" in seen.text
    assert seen.page.locator("[role=application]").count() == 1
    seen.page.locator("[role=option]").nth(2).click()
    assert "Ω 0.35 · commit 3" in seen.page.inner_text(".readout")
    assert "Pinned: token 2, state 3" in seen.page.locator("[role=application]").get_attribute("aria-label")
    seen.page.locator("[role=option]").nth(3).hover()
    seen.page.locator("[role=application]").hover(position={"x": 5, "y": 5})
    assert "token 0" in seen.page.inner_text(".tip").lower()
    assert seen.page.locator("[aria-selected=true]").get_attribute("data-index") == "2"
    assert "Token 2" in seen.page.inner_text(".readout")
    seen.page.locator("[role=option]").nth(3).click()
    assert f"{SHOWN.replace(' ', '·')}”" in seen.page.inner_text(".readout")
    seen.page.keyboard.press("Escape")
    assert seen.page.locator("[aria-selected=true]").count() == 0
    assert "Pinned" not in seen.page.locator("[role=application]").get_attribute("aria-label")


def test_the_prompt_is_there_again_after_another_page(seen):
    seen.go("page=live")
    seen.page.get_by_label("Prompt").fill("Once upon")
    seen.page.get_by_label("New tokens").fill("7")
    seen.go("page=overview")
    seen.go("page=live")
    assert seen.page.get_by_label("Prompt").input_value() == "Once upon"
    assert seen.page.get_by_label("New tokens").input_value() == "7"


def test_escape_ends_the_generation_in_the_server_too(seen):
    Speaker.count, Speaker.pause = 400, 0.02
    Speaker.left.clear()
    seen.go("page=live")
    seen.page.get_by_label("Prompt").fill("Once")
    seen.page.get_by_role("button", name="Generate").click()
    seen.page.wait_for_selector("[role=option] >> nth=2")
    assert "running mean" in seen.text
    seen.page.keyboard.press("Escape")
    seen.page.wait_for_selector("text=Stopped after")
    assert Speaker.left.wait(5)
    assert seen.page.get_by_role("button", name="Generate").is_enabled()


def test_what_the_model_refuses_is_said_in_its_own_words(seen):
    Speaker.refusal = "the prompt has 9000 tokens and the context 512"
    seen.expected = ("413",)
    try:
        seen.go("page=live")
        seen.page.get_by_label("Prompt").fill("long")
        seen.page.get_by_role("button", name="Generate").click()
        seen.page.wait_for_selector(f"text={Speaker.refusal}")
        said = {"status": 413, "json": {"error": {"message": f"no {EVIL}"}}}
        seen.page.route("**/api/live", lambda route: route.fulfill(**said))
        seen.page.get_by_role("button", name="Generate").click()
        seen.page.wait_for_function("said => document.querySelector('main').innerText.includes(said)", arg=f"no {SHOWN}")
    finally:
        Speaker.refusal = ""


def test_a_viewer_without_a_model_says_how_to_start_one(seen):
    seen.page.route("**/api/live", lambda route: route.fulfill(json={"connected": False, "error": None}))
    seen.go("page=live")
    assert "hyperlens serve MODEL" in seen.text
    assert "hyperlens view RUNS --live URL" in seen.text


def test_names_and_texts_that_attack_are_shown_and_do_nothing(seen):
    assert "alert(3)" in seen.text
    seen.go("page=study&run=3")
    assert f"sums {SHOWN}" in seen.text
    assert f"model {SHOWN}" in seen.page.locator("select").first.inner_text()
    assert SHOWN in seen.page.locator(".plot").first.evaluate("plot => plot.textContent")
    seen.page.locator(".plot").first.evaluate("plot => Plotly.Fx.hover(plot, [{ curveNumber: 0, pointNumber: 0 }])")
    assert f"sums {SHOWN} " in seen.page.locator(".plot .hoverlayer").first.evaluate("layer => layer.textContent")
    seen.go("page=live")
    assert SHOWN in seen.text
    seen.go("page=compare&before=3&after=0")
    seen.expected = ("400",)
    assert seen.page.locator("main img, main script").count() == 0
    seen.go(f"page=explorer&run=3&task=sums&sample={quote(EVIL)}")
    assert not re.search("[\x00-\x1f\u202e]", seen.page.title())


@pytest.mark.parametrize(
    ("fragment", "sentence"), [("page=study&run=77", 'no run "77"'), ("page=%3Cb%3E", 'There is no page "<b>"')]
)
def test_an_address_of_nothing_gets_a_sentence(seen, fragment, sentence):
    seen.expected = ("404",)
    seen.go(fragment)
    assert sentence in seen.page.inner_text("[role=alert]")


def test_after_a_refusal_back_shows_what_was_there(seen):
    seen.expected = ("Failed to load resource",)
    seen.go("page=samples&run=0")
    seen.page.route("**/api/runs/0/samples?*", lambda route: route.abort())
    seen.go("page=samples&run=0&sort=confidence")
    seen.page.wait_for_selector("[role=alert]")
    seen.page.unroute("**/api/runs/0/samples?*")
    seen.page.go_back()
    seen.page.wait_for_selector("table.samples a.open")
    assert seen.page.locator("[role=alert]").count() == 0


def test_another_depth_without_a_sample_asks_for_the_first_of_that_list_which_is_saved_with_it(seen):
    seen.go("page=explorer&run=0")
    seen.page.wait_for_selector(".plane")
    with seen.page.expect_request(lambda asked: "/samples?depth=2" in asked.url and "limit=1&" in asked.url):
        seen.page.evaluate("() => { location.hash = 'page=explorer&run=0&depth=2&token=none'; }")
    seen.page.wait_for_selector("text=No token is pinned")


def test_without_a_run_in_the_address_the_first_is_meant_and_its_number_is_never_part_of_a_path(seen):
    seen.go("page=samples")
    assert seen.page.locator("table.samples").count() == 1
    seen.expected = ("404",)
    for there in ("samples", "explorer", "study"):
        with seen.page.expect_request("**/api/runs/0%2F..%2F1") as asked:
            seen.go(f"page={there}&run=0%2F..%2F1")
        assert "/.." not in asked.value.url
        assert seen.page.locator("[role=alert]").count() == 1


def test_a_server_that_has_ended_gets_a_sentence(seen):
    seen.expected = ("Failed to load resource",)
    seen.page.route("**/api/**", lambda route: route.abort())
    seen.go("page=study&run=0")
    assert "does not answer" in seen.page.inner_text("[role=alert]")


def test_the_colours_are_the_readers_choice_and_figures_follow(seen):
    seen.go("page=study&run=0")
    ground = (
        "() => [getComputedStyle(document.body).backgroundColor, document.querySelector('.plot .main-svg').style.background]"
    )
    light = seen.page.evaluate(ground)
    seen.page.get_by_role("button", name="Dark colours").click()
    seen.page.wait_for_function(f"light => ({ground})()[1] !== light[1]", arg=light)
    assert seen.page.evaluate(ground)[0] != light[0]
    seen.page.reload()
    seen.settle()
    assert seen.page.evaluate(ground)[0] != light[0]


@pytest.mark.parametrize("store", ["localStorage", "sessionStorage"])
def test_a_browser_that_keeps_nothing_shows_the_viewer(context, served, store):
    refuse = f"Object.defineProperty(window, '{store}', {{ get() {{ throw new DOMException('no', 'SecurityError'); }} }})"
    with look(context, "about:blank") as seen:
        seen.page.add_init_script(refuse)
        seen.page.goto(f"{served}/#token={TOKEN}")
        seen.settle()
        seen.page.get_by_role("button", name="Dark colours").click()
        assert "5 runs" in seen.text


def test_paper_has_the_light_colours_and_all_of_them(seen):
    seen.page.emulate_media(color_scheme="dark")
    seen.go("page=explorer&run=0&task=sums&sample=3")
    theme = "document.documentElement.dataset.theme"
    seen.page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {theme}; }})")
    seen.page.pdf(print_background=False)
    assert (seen.page.evaluate("window.printed"), seen.page.evaluate(theme)) == ("light", "dark")
    seen.page.emulate_media(media="print")
    for node in (".token", ".plane .grid", ".ramp"):
        assert seen.page.locator(node).first.evaluate("node => getComputedStyle(node).printColorAdjust") == "exact"


def test_a_figure_is_saved_as_svg_and_png(seen, tmp_path):
    seen.go("page=study&run=0")
    for kind, first in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with seen.page.expect_download() as saving:
            seen.page.locator("figure").first.get_by_role("button", name=kind).click()
        saving.value.save_as(tmp_path / kind)
        assert saving.value.suggested_filename == f"effort-by-task.{kind.lower()}"
        assert (tmp_path / kind).read_bytes().startswith(first)


@pytest.mark.parametrize("name", [*PAGES, "explorer"])
def test_a_saved_view_shows_the_same_without_a_network(seen, browser, tmp_path, name):
    seen.go(PAGES.get(name, "page=explorer&run=0&task=sums&sample=3"))
    if name == "live":
        Speaker.count, Speaker.pause = 6, 0.0
        seen.page.get_by_label("Prompt").fill(ASKED)
        seen.page.get_by_role("button", name="Generate").click()
        seen.page.wait_for_selector("text=Finished after 6 tokens.")
    seen.page.evaluate("() => { delete Crypto.prototype.randomUUID; }")  # as at an address that is not called secure
    with seen.page.expect_download() as saving:
        seen.page.get_by_role("button", name="Save this view").click()
    seen.page.wait_for_selector(f".told >> text=The view is saved as {saving.value.suggested_filename}")
    file = tmp_path / "view.html"
    saving.value.save_as(file)
    text = file.read_text(encoding="utf-8")
    assert TOKEN not in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; script-src 'nonce-")
    asked: list[str] = []
    with (
        closing(browser.new_context(viewport={"width": 1200, "height": 800}, offline=True)) as alone,
        look(alone, "about:blank") as saved,
    ):
        saved.page.on("request", lambda request: asked.append(request.url))
        saved.page.goto(f"file://{file}")
        saved.settle()
        shown, expected = (OTHER.sub("", one.text) for one in (saved, seen))
        assert shown == expected
        for picture in (".main-svg", "canvas", "[role=option]"):
            assert saved.page.locator(picture).count() == seen.page.locator(picture).count()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_view_that_cannot_be_saved_says_so_in_sight(seen):
    seen.expected = ("Failed to load resource",)
    seen.page.route("**/static/style.css", lambda route: route.abort())
    seen.page.get_by_role("button", name="Save this view").click()
    seen.page.wait_for_selector(".told >> text=The view was not saved")
    assert seen.page.locator(".told").bounding_box()["height"] > 15


def test_the_pages_are_accessible_in_light_and_dark(context, served):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    contrast = {"runOnly": ["color-contrast"], "resultTypes": ["violations"]}

    def check(where: str) -> None:
        found = []
        for scheme, options in (("light", {"resultTypes": ["violations"]}), ("dark", contrast)):
            seen.page.emulate_media(color_scheme=scheme)
            found += axe.run(seen.page, options=options).response["violations"]
        assert [(where, one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []

    with look(context, served) as seen:
        seen.expected = ("401",)
        seen.page.wait_for_selector("#token")
        check("token")
        seen.page.get_by_label("Token").fill(TOKEN)
        seen.page.keyboard.press("Enter")
        for name, fragment in PAGES.items():
            seen.go(fragment)
            check(name)


def test_nothing_is_wider_than_a_small_screen(seen):
    seen.page.set_viewport_size({"width": 360, "height": 700})
    for fragment in PAGES.values():
        seen.go(fragment)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 360, fragment


def test_the_keyboard_alone_reaches_the_content(seen):
    seen.page.keyboard.press("Tab")
    assert seen.page.evaluate("document.activeElement.className") == "skip"
    seen.page.keyboard.press("Enter")
    assert seen.page.evaluate("document.activeElement.id") == "main"
    seen.page.get_by_role("link", name="study of", exact=False).first.press("Enter")
    seen.page.wait_for_selector("h2:has-text('Effort')")
    assert seen.page.evaluate("document.activeElement.id") == "main"


def test_what_has_the_focus_has_it_again_after_the_page_is_drawn_anew(seen):
    focus = "(({ localName, value, textContent }) => `${localName} ${value || textContent}`)(document.activeElement)"
    for fragment, kind, name, again in (
        ("page=samples&run=0", "button", "Confidence", "button Confidence ↓"),
        ("page=explorer&run=0&task=sums&sample=3", "link", "Next →", "a Next →"),
        ("page=compare&before=0&after=1", "button", "Swap", "button Swap"),
        ("page=study&run=0&depth=0", "combobox", "Focal depth", "select 2"),
    ):
        seen.go(fragment)
        focused = seen.page.get_by_role(kind, name=name)
        focused.wait_for()
        focused.evaluate("node => { node.dataset.before = 'yes'; }")
        focused.press("ArrowDown" if kind == "combobox" else "Enter")
        seen.page.wait_for_function("() => !document.querySelector('[data-before]')")
        seen.page.wait_for_function(f"again => {focus} === again", arg=again)


def test_no_line_of_the_pages_is_longer_than_those_of_the_code():
    files = [file for file in STATIC.rglob("*") if file.suffix in (".js", ".css", ".html")]
    assert len(files) > 20
    assert [(file.name, line) for file in files for line in file.read_text("utf-8").splitlines() if len(line) > 128] == []
