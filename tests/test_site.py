"""The documentation is whole: it builds without a warning, has every public name and every room, and needs no network."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path

import pytest
from browsing import open_chromium

import hyperlens

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\"")
"""What a browser loads of itself; what one may click on is no part of it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in this process as `make docs` builds it: a warning ends it with status 1."""
    from sphinx.cmd.build import main
    from sphinx.deprecation import RemovedInSphinx11Warning

    out = tmp_path_factory.mktemp("site")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RemovedInSphinx11Warning)  # myst-parser calls what Sphinx will change
        said = main(["-q", "-W", "--keep-going", "-d", str(out / "doctrees"), str(DOCS), str(out / "pages")])
    assert said == 0, "make docs says what is wrong"
    return out / "pages"


@pytest.mark.slow
def test_every_page_and_every_public_name_is_on_the_site(site: Path) -> None:
    pages = {file.relative_to(DOCS).with_suffix(".html") for kind in ("*.md", "tutorials/*.ipynb") for file in DOCS.glob(kind)}
    assert {page for page in pages if not (site / page).is_file()} == set()
    described = set(re.findall(r'<dt class="sig[^>]* id="hyperlens\.(\w+)"', (site / "api.html").read_text(encoding="utf-8")))
    assert described == set(hyperlens.__all__)


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = [one or other for one, other in FETCHED.findall(page.read_text(encoding="utf-8"))]
        assert fetched and [one for one in fetched if re.match(r"(?:\w+:)?//", one)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:\w+:)?//|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_the_site_shows_the_tutorials_as_they_were_run(site: Path) -> None:
    page = (site / "tutorials" / "first-look.html").read_text(encoding="utf-8")
    assert page.count('class="hyperlens"') == 3 and "Run first-look" in page


@pytest.mark.slow
def test_results_are_shown_whole_and_tables_have_no_raw_borders(site: Path) -> None:
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto((site / "tutorials" / "first-look.html").as_uri())
        wide = "[...document.querySelectorAll('.hyperlens')].map(one => one.scrollWidth - one.clientWidth)"
        assert set(page.evaluate(wide)) == {0}
        lines = "[...document.querySelectorAll('td:not(.word) .chip')].map(one => one.getClientRects().length)"
        assert set(page.evaluate(lines)) == {1}
        cells = "[...document.querySelectorAll('table.dataframe, table.dataframe td')]"
        assert set(page.evaluate(f"{cells}.map(one => getComputedStyle(one).borderLeftWidth)")) == {"0px"}


def test_every_link_between_pages_leads_to_a_file() -> None:
    for page in DOCS.glob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"\w+:", link)]
        assert [link for link in links if not (DOCS / link).exists()] == [], page


def test_every_layer_of_the_rooms_is_drawn_in_its_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert max(map(len, page.split("```")[1].splitlines())) <= 88, "wider ones are cut on the site"
    drawn = re.findall(r"^ {0,2}([a-z][a-z| ]*?)(?:  +\S.*)?$", page.split("```")[1], re.MULTILINE)
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [set(re.findall(r"\w+", layer)) for layer in layers] == [
        set(re.findall(r"\w+", line)) for line in re.sub(r"\|\n", "| ", "\n".join(drawn)).splitlines()
    ]


def test_the_page_of_the_api_names_what_is_public_and_nothing_else() -> None:
    named = re.findall(r"^\.\. auto\w+:: hyperlens\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(hyperlens.__all__)
