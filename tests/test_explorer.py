"""The list of samples and the explorer in a real browser: every gesture, what is in the address, and texts that attack."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa
import pytest
from browsing import TOKEN, open_chromium, serve_runs
from fabricated import make_table, save_run
from pages import EVIL

import hyperlens as hl
from hyperlens.artefact import place_table, read_parquet
from hyperlens.runs.opening import open_store

LAYERS, DEPTHS = 32, (0, 1, 2, 4, 8)
NUMBERS = itertools.count(100)
"""Of samples that are not in the run, so that each is another one to the page."""
VIOLATIONS = "addEventListener('securitypolicyviolation', event => console.error('policy', event.violatedDirective))"


@pytest.fixture(scope="module")
def kept(plain, tmp_path_factory):
    """A measured run that kept the top tokens of every state, one of which attacks; the logit lens stands for its lens."""
    lens = hl.LensSpec(focal_depths=(0, 1), top_k=3)
    study = hl.Study("kept", (hl.ModelSpec("plain"),), (hl.TaskSpec("own"),), (lens,))
    samples = [hl.Sample("w15 w16 w17", " w18 w19")]
    run = hl.run_study(study, tmp_path_factory.mktemp("runs") / "kept", {"plain": plain}, {"own": samples})
    store = open_store(run.folder)
    file = store.file(store.shards[0], "spelling")
    spelled, first = read_parquet(file), int(run.trajectory().data["top_ids"].values[0, 0, 2, 0])
    texts = [EVIL if token == first else text for token, text in zip(*spelled.to_pydict().values(), strict=True)]
    place_table(file, spelled.set_column(1, "token_text", pa.array(texts)))
    document = store.model(0)
    document["lenses"]["jump"]["auto"] = {"chosen": 0, "beside": [0, 1], "positions": 2, "candidates": {}}
    store.add_model(0, document)
    return run


@pytest.fixture(scope="module")
def address(kept, tmp_path_factory):
    table = make_table(60, tasks=("sums", "words"), levels=(1, 2, 3))
    folder = tmp_path_factory.mktemp("runs") / "base"
    save_run(folder, table, asked=f"What is {EVIL}")
    with serve_runs(folder, kept.folder) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(f"sessionStorage.setItem('hyperlens-token', '{TOKEN}')")
    context.add_init_script(VIOLATIONS)
    yield context
    context.close()


@pytest.fixture(scope="module")
def opened(context):
    """One page for all tests, what went wrong in it, and what it is to have for the server's answer."""
    page, wrong, answer = context.new_page(), [], {}
    page.set_default_timeout(8000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.route("**/api/runs/0/sample?*", lambda route: route.fulfill(json=answer) if answer else route.continue_())
    return page, wrong, answer


@pytest.fixture
def page(opened):
    """The page, which is to have no error, no dialogue and no violation of the policy in any test."""
    page, wrong, answer = opened
    answer.clear()
    yield page
    page.emulate_media(color_scheme="light", reduced_motion="no-preference")
    page.set_viewport_size({"width": 1280, "height": 900})
    found = [*wrong]
    wrong.clear()
    assert found == []


@pytest.fixture
def show(page, opened, address):
    """Opens the explorer on a given answer of the server."""
    *_, answer = opened

    def open_explorer(sample, **state):
        answer.update(sample)
        pairs = {"page": "explorer", "run": "0", "task": "sums", "sample": str(next(NUMBERS)), **state}
        page.goto(f"{address}#" + "&".join(f"{key}={value}" for key, value in pairs.items()))
        wait(page, f"document.title.startsWith('sums {pairs['sample']} ') && document.querySelector('.neighbours a')")

    return open_explorer


def make_sample(tokens, layers=LAYERS, texts=(" effort",), readings=("probability",), top=False) -> dict[str, Any]:
    """The server's answer for a sample of so many tokens, with confidence that rises, the later the further in the text."""
    sample: dict[str, Any] = {
        "task": "sums",
        "spec": "sums",
        "sample": 7,
        "id": "sums/7",
        "level": 3,
        "correct": True,
        "generated": None,
    }
    said = [texts[place % len(texts)] for place in range(tokens)]
    sample |= {"prompt": f"Add {EVIL}", "target": " 7", "layers": layers, "depths": list(DEPTHS), "readings": list(readings)}
    sample["tokens"] = [
        {"position": place, "token": said[place - 1], "output": text, "reference": text, "output_probability": 0.9}
        for place, text in enumerate(said)
    ]
    middles = {depth: [(0.3 + 0.5 * place / tokens) * layers - depth for place in range(tokens)] for depth in DEPTHS}
    sample["confidence"] = {
        str(depth): [
            [round(1 / (1 + math.exp(middle - state)), 4) for state in range(layers - depth + 1)] for middle in middles[depth]
        ]
        for depth in DEPTHS
    }
    sample["commit"] = {str(depth): [min(layers - depth, max(0, int(one) + 2)) for one in middles[depth]] for depth in DEPTHS}
    sample["onset"] = sample["commit"]
    sample["effort"] = {str(depth): [round(place / tokens, 4) for place in range(tokens)] for depth in DEPTHS}
    kept = [[[[EVIL, 0.5], ["is", 0.25]] for _ in range(layers + 1)] for _ in range(tokens)]
    return sample | {"top": {str(depth): kept for depth in DEPTHS} if top else None}


def wait(page, condition):
    """Wait until an expression of the page holds; `wait_for_function` is against the page's own policy."""
    for _ in range(200):
        if page.evaluate(f"!!({condition})"):
            return
        page.wait_for_timeout(40)
    raise AssertionError(f"this did not come true: {condition}")


def read_state(page):
    return {key: values[0] for key, values in parse_qs(page.evaluate("location.hash")[1:]).items()}


def find_cell(page, token, state, tokens, layers=LAYERS):
    """Where the middle of a cell of the heatmap is on the screen."""
    page.locator(".plane").scroll_into_view_if_needed()
    box = page.locator(".plane").bounding_box()
    return (
        box["x"] + (token + 0.5) / tokens * box["width"],
        box["y"] + box["height"] - (state + 0.5) / (layers + 1) * box["height"],
    )


PIXEL = """([token, state]) => {
  const picture = document.querySelector(".plane canvas");
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.drawImage(picture, -token, state + 1 - picture.height);
  return [...context.getImageData(0, 0, 1, 1).data];
}"""
FRAMES = f"""async ([button, ...cell]) => {{
  const [seen, start] = [[], performance.now()];
  document.querySelector(button).click();
  while (performance.now() < start + 1000) {{
    seen.push(({PIXEL})(cell));
    await new Promise(requestAnimationFrame);
  }}
  return seen;
}}"""


def read_pixel(page, token, state):
    """The colour of a cell, as the canvas has it."""
    return page.evaluate(PIXEL, [token, state])


def rest(page):
    """Wait until no transition is left."""
    wait(page, "document.getAnimations().every(one => one.playState !== 'running')")


# the list


def open_list(page, address, **state):
    pairs = {"page": "samples", "run": "0", **state}
    page.goto(f"{address}#" + "&".join(f"{key}={value}" for key, value in pairs.items()))
    page.reload()  # the list of the test before would stay until this one comes
    page.wait_for_selector(".samples tbody tr")


def read_column(page, place):
    return page.eval_on_selector_all(".samples tbody tr", f"rows => rows.map(row => row.children[{place}].textContent)")


def test_the_list_is_sorted_by_its_headings_and_by_names_of_orders(page, address):
    open_list(page, address)
    hardest = [float(one) for one in read_column(page, 5)]
    assert hardest == sorted(hardest, reverse=True) and len(hardest) == 50
    page.get_by_role("button", name="Effort Ω").click()
    page.wait_for_selector("[aria-sort=ascending]")
    easiest = [float(one) for one in read_column(page, 5)]
    assert easiest == sorted(easiest)
    page.get_by_label("Order").select_option(label="Surest first")
    page.wait_for_selector("th[aria-sort=descending] >> text=Confidence")
    sure = [float(one) for one in read_column(page, 4)]
    assert sure == sorted(sure, reverse=True)
    assert read_state(page)["sort"] == "confidence"


def test_the_list_is_searched_filtered_and_paged(page, address):
    open_list(page, address)
    page.get_by_role("button", name="Next →").click()
    page.wait_for_selector("text=Samples 51 to 100 of 120")
    page.get_by_label("Search").fill(" 17?")
    page.wait_for_selector("text=Samples 1 to 2 of 2")
    assert sorted(read_column(page, 0)) == ["sums 17", "words 17"]
    page.get_by_label("Search").fill("no such words")
    page.wait_for_selector("text=No sample is like that")
    page.get_by_label("Search").fill("")
    page.get_by_label("Task").select_option("words")
    page.get_by_label("Show").select_option(label="Wrong")
    wait(page, "document.querySelector('.samples .wrong') && !document.querySelector('.samples .right')")
    assert all(one.startswith("words") for one in read_column(page, 0)) and set(read_column(page, 3)) == {"wrong"}


def test_the_arrow_keys_go_from_row_to_row_and_enter_opens_one(page, address):
    open_list(page, address)
    page.locator("a.open").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    name = page.evaluate("document.activeElement.textContent")
    assert name == read_column(page, 0)[1]
    page.keyboard.press("Enter")
    page.wait_for_selector(".plane")
    assert page.locator("h1").inner_text().startswith(name)
    page.wait_for_selector("text=2 of 120")


def test_the_explorer_goes_on_in_the_list_that_it_was_opened_from(page, address):
    open_list(page, address, sort="confidence", order="up", show="wrong")
    names = read_column(page, 0)
    page.locator("a.open").nth(2).click()
    page.wait_for_selector(".step[href] >> text=Next")
    page.locator(".step", has_text="Next").click()
    page.wait_for_selector(f"h1 >> text={names[3]}")
    page.wait_for_selector(".step[href] >> text=Previous")
    page.locator(".step", has_text="Previous").click()
    page.wait_for_selector(f"h1 >> text={names[2]}")
    page.wait_for_selector(".neighbours >> text=All samples")
    page.get_by_role("link", name="All samples").click()
    page.wait_for_selector(".samples tbody tr")
    assert read_column(page, 0) == names


def test_without_a_sample_in_the_address_the_hardest_is_shown(page, address):
    open_list(page, address)
    hardest = read_column(page, 0)[0]
    page.goto(f"{address}#page=explorer&run=0")
    page.wait_for_selector(".plane")
    assert page.locator("h1").inner_text().startswith(hardest)


# the picture


def test_the_pointer_says_what_a_cell_is_and_a_click_pins_it(page, show):
    sample = make_sample(20, top=True)
    show(sample, depth=2)
    page.mouse.move(*find_cell(page, 4, 9, 20))
    tip = page.locator(".tip").inner_text()
    assert "token 4" in tip and "state 9" in tip and f"{sample['confidence']['2'][4][9]:.3f}" in tip and "“is” 0.250" in tip
    page.mouse.click(*find_cell(page, 4, 9, 20))
    assert read_state(page) | {"token": "4", "layer": "9", "depth": "2"} == read_state(page)
    assert f"confidence at state 9 {sample['confidence']['2'][4][9]:.3f}" in page.locator(".pinned .facts").inner_text()
    assert page.locator(".token[aria-selected=true]").get_attribute("data-index") == "4"
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()


def test_top_tokens_of_a_measured_run_are_beside_the_pointer_and_the_pinned_token(page, address, kept):
    page.goto(f"{address}#page=explorer&run=1&task=own&sample=0&token=0&layer=2")
    page.wait_for_selector(".top-tokens li")
    data = kept.trajectory().data
    shares = [f"{share:.3f}" for share in data["top_probabilities"].values[0, 0, 2].tolist()]
    listed = page.locator(".top-tokens").inner_text()
    assert "Top tokens at state 2" in listed and all(share in listed for share in shares)
    layers = kept.trajectory().layers
    page.mouse.move(*find_cell(page, 0, 2, 2, layers))
    tip = page.locator(".tip").inner_text()
    assert "state 2" in tip and all(f"” {share}" in tip for share in shares)
    for said in (listed, tip):
        assert "\\u001b[31m\\u202e" in said and "</script><script>alert(1)" in said and not re.search("[\x1b\u202e]", said)
    assert page.locator("main script, main img").count() == 0
    page.mouse.click(*find_cell(page, 1, layers, 2, layers))
    page.wait_for_selector(f"text=Top tokens at state {layers}")
    assert f"{data['top_probabilities'].values[1, 0, -1, 0]:.3f}" in page.locator(".top-tokens").inner_text()


@pytest.mark.parametrize("there", ["explorer", "study", "samples"])
def test_the_depth_that_stands_for_the_lens_is_shown_first(page, address, there):
    page.goto(f"{address}#page={there}&run=1")
    if there == "explorer":
        page.wait_for_selector("output >> text=m = 0, the logit lens")
    else:
        assert page.locator("#choice-focal-depth").input_value() == "0"


def test_the_arrow_keys_move_the_pinned_cell_and_escape_lets_go(page, show):
    show(make_sample(20), depth=2, token=4, layer=9)
    page.locator(".plane").focus()
    cell = lambda: (read_state(page)["token"], read_state(page).get("layer"))  # noqa: E731
    for key, expected in (
        ("ArrowRight", ("5", "9")),
        ("ArrowUp", ("5", "10")),
        ("ArrowLeft", ("4", "10")),
        ("ArrowDown", ("4", "9")),
        ("End", ("19", "9")),
        ("ArrowRight", ("19", "9")),
        ("Home", ("0", "9")),
        ("Escape", ("none", None)),
    ):
        page.keyboard.press(key)
        assert cell() == expected, key
    assert "No token is pinned" in page.locator(".pinned").inner_text()
    assert page.locator(".pin").is_hidden()


def test_tokens_are_a_listbox_with_one_stop_of_the_tab_key(page, show):
    show(make_sample(20), depth=2, token=4, layer=9)
    assert page.get_by_role("option").count() == 20
    assert page.locator(".token[tabindex='0']").count() == 1
    page.locator(".token[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    assert read_state(page)["token"] == "5"
    assert page.evaluate("document.activeElement.dataset.index") == "5"
    page.keyboard.press("Escape")
    assert read_state(page)["token"] == "none"
    page.locator(".token").nth(11).click()
    assert read_state(page)["token"] == "11"
    assert page.locator(".token").nth(11).get_attribute("aria-label") == "·effort, effort 0.55"


def test_every_cell_has_the_colour_of_its_confidence(page, show):
    sample = make_sample(20)
    show(sample, depth=2)
    rest(page)
    low, high, pale = read_pixel(page, 0, 0), read_pixel(page, 0, LAYERS - 2), read_pixel(page, 0, LAYERS)
    assert low == [0, 34, 78, 255] and high == [254, 232, 56, 255]  # the two ends of cividis
    assert pale[3] < 128
    brightness = [sum(read_pixel(page, 10, state)[:3]) for state in range(0, LAYERS - 1, 3)]
    assert brightness == sorted(brightness)


def test_the_slider_changes_the_focal_depth_of_everything(page, show):
    sample = make_sample(20)
    sample["effort"]["4"] = [0.25] * 20
    show(sample, depth=2, token=4, layer=9)
    before = read_pixel(page, 4, 9)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    assert read_state(page)["depth"] == "4"
    rest(page)
    assert read_pixel(page, 4, 9) != before
    assert page.locator(".token").first.get_attribute("aria-label").endswith("effort 0.25")
    assert "Ω 0.25" in page.locator(".pinned .facts").inner_text()
    assert page.get_by_role("slider").get_attribute("aria-valuetext") == "focal depth 4"


def test_play_runs_through_the_depths_by_steps_in_between_and_pauses(page, show):
    show(make_sample(20), depth=2, token=4, layer=9)
    seen = [sum(colour) for colour in page.evaluate(FRAMES, [".play", 4, 9])]
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert read_state(page)["depth"] == "4" and page.locator(".play").inner_text().endswith("Pause")
    wait(page, "location.hash.includes('depth=8')")
    assert page.locator(".play").inner_text().endswith("Play")
    page.locator(".play").click()
    assert read_state(page)["depth"] == "0"
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(1500)
    assert read_state(page)["depth"] == "0"


def test_who_wants_less_motion_sees_the_next_depth_at_once(page, show):
    page.emulate_media(reduced_motion="reduce")
    show(make_sample(20), depth=2, token=4, layer=9)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    soon = read_pixel(page, 4, 9)
    page.wait_for_timeout(700)
    assert read_pixel(page, 4, 9) == soon


def test_the_address_restores_the_same_view(page, show, context):
    show(make_sample(20), depth=1)
    page.mouse.click(*find_cell(page, 7, 20, 20))
    page.wait_for_selector(".trajectory .plot .lines")
    texts = [page.locator(one).inner_text() for one in (".pinned .facts", ".pinned h2", "output", "h1")]
    other = context.new_page()
    other.route("**/api/runs/0/sample?*", lambda route: route.fulfill(json=make_sample(20)))
    other.goto(page.url)
    other.wait_for_selector(".trajectory .plot .lines")
    assert [other.locator(one).inner_text() for one in (".pinned .facts", ".pinned h2", "output", "h1")] == texts
    assert read_pixel(other, 7, 20) == read_pixel(page, 7, 20)
    assert "state 20" in texts[0] and read_state(other)["token"] == "7"
    other.close()


def test_another_reading_has_its_own_values_and_its_own_scale(page, show):
    sample = make_sample(20, readings=("probability", "entropy"))
    sample["values"] = {str(depth): [[8.0 - 0.2 * state for state in range(LAYERS - depth + 1)]] * 20 for depth in DEPTHS}
    show(sample, depth=2, token=4, layer=9)
    page.get_by_label("Reading").select_option("entropy")
    page.wait_for_selector("text=entropy at state 9 6.200")
    assert read_state(page)["reading"] == "entropy"
    assert "8" in page.locator(".legend .scale").inner_text()


def test_the_table_has_the_values_of_the_pinned_token(page, show):
    sample = make_sample(20, top=True)
    show(sample, depth=2, token=4, layer=9)
    page.get_by_text("As a table").click()
    cells = page.locator(".pinned table tr.here").locator("th, td").all_inner_texts()
    assert cells[0] == "9" and cells[1 + DEPTHS.index(2)] == f"{sample['confidence']['2'][4][9]:.3f}"
    assert page.locator(".pinned tbody tr").count() == LAYERS + 1


def test_the_heatmap_is_saved_as_svg_and_png(page, show):
    show(make_sample(20, texts=(" effort", "nine sign\N{GRINNING FACE}")), depth=2)
    found = {}
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.locator(".heatmap .figure-tools button", has_text=kind).click()
        found[download.value.suggested_filename] = download.value.path().read_bytes()
    assert (
        found["heatmap.svg"].startswith(b"<svg")
        and b"data:image/png" in found["heatmap.svg"]
        and b"\xc2\xb7effort" in found["heatmap.svg"]
    )
    assert found["heatmap.png"].startswith(b"\x89PNG")


def test_a_difference_is_clear_where_nothing_changed_and_has_a_colour_for_each_way(page, show):
    show(make_sample(20), depth=2)
    pixels = page.evaluate(
        """async () => {
          const { drawHeatmap } = await import("/static/js/heatmap.js");
          const confidence = [[-1, 0, 1, null]];
          drawHeatmap(document.querySelector(".picture"), { tokens: ["a"], layers: 3, depth: 0, confidence, difference: true });
          const pixels = document.querySelector(".plane canvas").getContext("2d").getImageData(0, 0, 1, 4).data;
          return [3, 2, 1, 0].map((row) => [...pixels.slice(4 * row, 4 * row + 4)]);
        }"""
    )
    assert pixels[0] == [63, 127, 212, 255] and pixels[2] == [211, 98, 42, 255]
    assert pixels[1][3] < 10 and pixels[3][3] == 0


def test_tokens_are_added_one_by_one_and_nothing_is_read_into_an_effort_that_is_undefined(page, show):
    show(make_sample(20), depth=2)
    labels = page.evaluate(
        """async () => {
          const { showTokens } = await import("/static/js/tokens.js");
          const box = document.querySelector(".picture");
          const line = showTokens(box, { tokens: [], effort: [] });
          line.append("one", 0.25);
          line.append({ text: " two", effort: null });
          line.append("three", NaN);
          return [...box.querySelectorAll(".token")].map((one) => [one.getAttribute("aria-label"), one.className]);
        }"""
    )
    assert labels == [
        ["one, effort 0.25", "token"],
        ["·two, effort undefined", "token unmeasured"],
        ["three, effort undefined", "token unmeasured"],
    ]


# texts that attack


def test_a_prompt_and_a_token_show_as_text_and_run_nothing(page, show):
    sample = make_sample(12, texts=(EVIL, "\x1b[31m", "\u202eabc", "\n", " the", "", "\t", "<b>&amp;"), top=True)
    show(sample, depth=2, token=0, layer=3)
    page.wait_for_selector(".trajectory .plot .lines")
    page.mouse.move(*find_cell(page, 0, 5, 12))
    assert page.locator("main script, main img, main b:not(.facts b, .states b)").count() == 0
    words = page.locator(".words").first.inner_text()
    assert "</script><script>alert(1)</script>" in words and "\\u001b[31m" in words and "\\u202e" in words
    said = page.evaluate(
        "document.body.innerText + [...document.querySelectorAll('*')].map(one => one.getAttribute('aria-label')).join()"
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", said)
    assert page.locator(".token").nth(1).inner_text() == "\\u001b[31m"
    assert page.locator(".token").nth(2).inner_text() == "\\u202eabc"
    assert page.locator(".token").nth(5).inner_text() == "∅"


def test_the_list_shows_prompts_as_text(page, address):
    open_list(page, address)
    assert page.locator("main script, main img").count() == 0
    assert "<img src=x onerror=alert(2)>" in page.locator(".asked").first.inner_text()


# bounds


def contrast(one, other):
    """The ratio of the luminances of two colours of [0, 255], of WCAG 2."""

    def luminance(colour):
        shares = [value / 255 for value in colour]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLOURS = """nodes => nodes.map(node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor].map(name => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = name;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_can_be_read_at_every_effort(page, show, scheme):
    page.emulate_media(color_scheme=scheme)
    sample = make_sample(21)
    sample["effort"]["2"] = [place / 20 for place in range(21)]
    show(sample, depth=2, token="none")
    rest(page)
    pairs = page.eval_on_selector_all(".token", COLOURS)
    assert min(contrast(*pair) for pair in pairs) >= 4.5
    grounds = [sum(ground) for _, ground in pairs]
    assert grounds == sorted(grounds, reverse=scheme == "light")


@pytest.mark.parametrize("width", [360, 420])
def test_a_small_screen_never_scrolls_sideways(page, show, address, width):
    page.set_viewport_size({"width": width, "height": 800})
    show(make_sample(200), depth=2, token=4, layer=9)
    page.wait_for_selector(".trajectory .plot .lines")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    open_list(page, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_explorer_and_the_list_are_accessible(page, show, address):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    show(make_sample(20, texts=(" the", "\n", "\x1b")), depth=2, token=4, layer=9)
    page.wait_for_selector(".trajectory .plot .lines")
    rest(page)
    assert describe_violations(axe.run(page)) == []
    open_list(page, address)
    assert describe_violations(axe.run(page)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_lines_of_the_depths_are_told_apart_and_from_the_ground(page, show, scheme):
    page.emulate_media(color_scheme=scheme)
    show(make_sample(20), depth=2, token=4, layer=9)
    page.wait_for_selector(".trajectory .plot .lines")
    lines = page.eval_on_selector_all(
        ".trajectory .lines path.js-line", "all => all.map(one => [one.style.stroke, one.style.strokeDasharray])"
    )
    colours = [[int(part) for part in re.findall(r"\d+", colour)] for colour, _ in lines[: len(DEPTHS)]]
    ground = page.eval_on_selector(".pinned", COLOURS.replace("nodes => nodes", "node => [node]"))[0][1]
    assert len({dash for _, dash in lines}) == len(DEPTHS)
    assert min(contrast(colour, ground) for colour in colours) >= 3
    assert min(math.dist(one, other) for one, other in itertools.combinations(colours, 2)) > 30


def describe_violations(results):
    found = results.response["violations"]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]


def test_a_long_text_is_drawn_in_half_a_second_and_little_memory(page, show):
    page.evaluate("performance.clearMeasures()")
    show(make_sample(1000), depth=2)
    wait(page, "document.querySelectorAll('.token').length === 1000 && performance.getEntriesByName('draw-sample').length > 0")
    took = page.evaluate("performance.getEntriesByName('draw-sample').at(-1).duration")
    assert took < 2000  # half a second on a machine that does nothing else; here others run too
    assert page.evaluate("performance.memory.usedJSHeapSize") < 300e6
    assert page.get_by_role("option").count() == 1000
    page.locator(".plane").focus()
    page.keyboard.press("End")
    assert read_state(page)["token"] == "999"
    box, frame = page.locator(".pin").bounding_box(), page.locator(".scroll").bounding_box()
    assert frame["x"] <= box["x"] <= frame["x"] + frame["width"]
