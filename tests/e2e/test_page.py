"""Every page in a real Chromium, on a real server: it opens, fits, can be read, asks nobody else.

Not here: what single pages do (`test_page_*.py`), formats and tables (`tests/unit/test_server_page.py`).
"""

import httpx

from tests.e2e.pages import NARROW, Everything, Visitor, text_of, true_on
from tests.served import Served

pytest_plugins = ["tests.e2e.page_fixtures"]


def test_every_page_opens_and_nothing_on_it_is_blocked(everything: Everything, visit: Visitor) -> None:
    """`visit` fails where the console of the browser complains: of a script, of the content security policy."""
    page = visit()
    for path in everything.paths():
        answer = page.goto(everything.server.url + path)
        assert answer is not None
        assert answer.status == 200, path
        assert page.locator("main h1").count() == 1, path
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
    page.goto(f"{everything.server.url}/runs/{everything.done[0].run_id}")
    page.locator(".plot[data-field=loss] canvas").wait_for()
    # What monitoring repeats of the training's own numbers is not drawn twice: one line, so the newest value alone.
    assert text_of(page, ".plot[data-field=loss] .readout") == "0.1667"


def test_no_page_asks_anybody_else(everything: Everything, visit: Visitor) -> None:
    """Scripts, styles, pictures, fonts, streams: every request that the browser makes goes to this server."""
    page = visit()
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    for path in everything.paths():
        page.goto(everything.server.url + path)
        if "/runs/" in path or "run=" in path:
            page.locator(".plot[data-field=loss] canvas").wait_for()
    page.locator("h1").wait_for()
    # `data:` is no request to anybody; there is none either.
    assert {url.split("/")[2] for url in asked} == {everything.server.url.removeprefix("http://")}
    wanted = {"page.css", "page.js", "htmx.min.js", "uplot.min.js", "uplot.min.css", "log.js", "plots.js", "stream"}
    assert wanted <= {url.partition("?")[0].rpartition("/")[2] for url in asked}


def test_no_page_is_wider_than_a_phone(everything: Everything, visit: Visitor) -> None:
    """360 pixels: wide tables scroll in boxes of their own, columns stand one below another."""
    page = visit(viewport=NARROW)
    for path in everything.paths():
        page.goto(everything.server.url + path)
        if "/runs/" in path or "run=" in path:
            page.locator(".plot[data-field=loss] canvas").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, path
        for columns in page.locator(".columns").all():
            assert len(columns.evaluate("box => getComputedStyle(box).gridTemplateColumns").split()) == 1, path


def test_dark_where_the_system_is(everything: Everything, visit: Visitor) -> None:
    """The colours of `page.css`: paper #ffffff and ink #1a1f25, or #14171b and #e2e6ea; plots follow at once."""
    url = f"{everything.server.url}/runs/{everything.done[0].run_id}"
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    page = visit(url, color_scheme="light")
    assert page.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(26, 31, 37)"]
    page.locator(".plot[data-field=loss] canvas").wait_for()
    drawn = "document.querySelector('.plot[data-field=loss] canvas').toDataURL()"
    light = page.evaluate(drawn)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colours) == ["rgb(20, 23, 27)", "rgb(226, 230, 234)"]
    true_on(page, f"before => {drawn} !== before", arg=light)


def test_texts_have_contrast(everything: Everything, visit: Visitor) -> None:
    """At least 4.5 to 1, as WCAG AA asks of small text, computed by its formula from what the browser shows."""
    page = visit()
    for path in everything.paths():
        page.goto(everything.server.url + path)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            faint = page.evaluate(_CONTRASTS)
            assert not faint, (scheme, path)


_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("svg, .skip")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return bad;
}"""


def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(own_server: Served, visit: Visitor) -> None:
    """By what they accept."""
    page = visit(f"{own_server.url}/jobs/ftjob-000000000000")
    assert "there is no such job" in text_of(page, "#problem")
    for path in ("/nothing", "/runs/x", "/jobs?status=odd", "/jobs?after=x", "/static/nothing.js"):
        page.goto(own_server.url + path)
        assert page.locator("#problem").count() == 1, path
    assert httpx.get(f"{own_server.url}/jobs/x", trust_env=False).json()["error"]["type"] == "not_found_error"
    answer = httpx.get(f"{own_server.url}/api/jobs/x", headers={"accept": "text/html"}, trust_env=False)
    assert answer.json()["error"]["type"] == "not_found_error"
    visit.expects(400, 404)
