"""How fast the viewer's pages are in a real Chromium: a run of 10⁵ samples opened, a sample of 1,000 tokens × 33 states drawn.

`python benchmarks/viewer_pages.py` writes both runs (to --folder, kept there for another time), starts a fresh viewer and a
fresh browser for each repeat, and prints JSON: medians of seconds, and of megabytes of the page after it has shown 20 samples.
Needs playwright and /usr/bin/chromium.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from scale import LAYERS
from viewer import TOKENS, make_runs, start_viewer

CHROMIUM = "/usr/bin/chromium"
SHOWN = 20
"""Samples that are looked at before the memory is read."""
DRAWN = {
    "study": "document.querySelector('main table')",
    "figures": "document.querySelector('.plot .main-svg')",
    "samples": "document.querySelectorAll('main tbody tr').length > 20",
    "explorer": f"[...document.querySelectorAll('canvas')].some(one => one.width === {TOKENS})",
}
"""What is there once a page is drawn."""
TIMED = """([from, drawn]) => new Promise(resolve => {
    const began = from === null ? 0 : performance.now();
    if (from !== null) location.hash = from;
    const look = () => {
        const there = !document.querySelector('[aria-busy]') && eval(drawn);
        if (!there) return requestAnimationFrame(look);
        requestAnimationFrame(() => setTimeout(() => resolve((performance.now() - began) / 1000)));
    };
    look();
})"""
"""Seconds from the start, of the page or of a change of its address, until what was drawn has been painted."""
PLOTLY_ALONE = """async (base) => {
    const script = await (await fetch(`${base}/static/plotly.min.js`)).text();
    const began = performance.now();
    new Function(script)();
    return (performance.now() - began) / 1000;
}"""
"""Seconds that plotly's own script takes to run, which every figure waits for."""
ANSWERED = (
    "() => performance.getEntriesByType('resource').filter(one => one.name.includes('/sample?')).at(-1).responseEnd / 1000"
)


def main() -> None:
    """Make the runs where they are not there, look at them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    folder = make_runs(options.folder or Path(tempfile.mkdtemp()), options.rows)
    found = [measure(folder) for _ in range(options.repeats)]
    medians = {name: round(statistics.median(one[name] for one in found), 3) for name in found[0]}
    print(json.dumps({"rows": options.rows, "tokens": TOKENS, "states": LAYERS + 1, **medians}))


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each page in a browser that was just started, and megabytes of the page at the end."""
    with start_viewer(folder) as client, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        numbers = {row["place"]: row["id"] for row in client.get("/api/runs").json()["runs"]}
        token = client.headers["authorization"].removeprefix("Bearer ")
        page = browser.new_context(bypass_csp=True, viewport={"width": 1280, "height": 900}).new_page()
        page.add_init_script(f"sessionStorage.setItem('hyperlens-token', {json.dumps(token)})")
        found = {
            "open_study": _open(page, f"{client.base_url}#page=study&run={numbers['many']}", "study"),
            "study_figures": page.evaluate(TIMED, [None, DRAWN["figures"]]),
            "open_samples": _open(page, f"{client.base_url}#page=samples&run={numbers['many']}", "samples"),
            "plotly_alone": page.evaluate(PLOTLY_ALONE, str(client.base_url)),
        }
        found["switch_sample"], found["draw_sample"] = _show_samples(page, numbers["long"])
        found |= _read_memory(browser, page)
        browser.close()
        return found


def _open(page: Page, address: str, name: str) -> float:
    """Seconds until a page that is opened afresh is drawn, from the start of its navigation."""
    page.goto("about:blank")
    page.goto(address, wait_until="commit")
    return page.evaluate(TIMED, [None, DRAWN[name]])


def _show_samples(page: Page, run: str) -> tuple[float, float]:
    """Median seconds from the click on a sample until it is drawn, and from its data until it is drawn."""
    whole, drawing = [], []
    for number in range(SHOWN):
        page.evaluate(TIMED, ["page=overview", "document.querySelector('main table')"])
        whole.append(page.evaluate(TIMED, [f"page=explorer&run={run}&task=texts&sample={number}", DRAWN["explorer"]]))
        drawing.append(page.evaluate("() => performance.now() / 1000") - page.evaluate(ANSWERED))
    return statistics.median(whole), statistics.median(drawing)


def _read_memory(browser: Any, page: Page) -> dict[str, float]:
    """Megabytes of the page's scripts, and of its whole process as the system counts it (proportional set size)."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = page.evaluate("() => performance.memory.usedJSHeapSize")
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = [_read_process(one["id"]) for one in processes if one["type"] == "renderer"]
    return {"heap_mb": heap / 2**20, "page_mb": max(sizes)}


def _read_process(number: int) -> float:
    text = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="utf-8")
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
