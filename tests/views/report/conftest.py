"""A real browser for the page: Chromium as the system brings it, driven by Playwright; no download of its own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.views.report.made_run import HOSTILE, MadeRun, make_run

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Give the path of a Chromium, None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


# while Playwright runs, no other event loop can in this process
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Give a headless browser; without one the test is skipped, but fails where FCLM_BROWSER_REQUIRED is set."""
    found = find_browser()
    if found is None:
        reason = f"expected a browser, one of {', '.join(NAMES)}; install chromium"
        if os.environ.get("FCLM_BROWSER_REQUIRED"):
            pytest.fail(reason)
        pytest.skip(reason)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    """Give a run of three layers and four probes, whose names of tasks are an attack on the page."""
    run = make_run(tmp_path_factory.mktemp("made") / "run", name=HOSTILE)
    for step, warm in ((0, False), (50, True), (100, True), (200, True)):
        run.add(step, warm=warm)
    run.folder.mark_finished({"early_stopping_step": 100})
    return run


class Tab:
    """A page of the browser that remembers what went wrong and what was asked of the network."""

    def __init__(self, browser: Any, size: tuple[int, int] = (1500, 1000), scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.page.set_default_timeout(40_000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.problems.append(said.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str | Path) -> "Tab":
        """Open a page and wait until its maps are drawn."""
        self.page.goto(url.as_uri() if isinstance(url, Path) else url)
        self.page.wait_for_function("window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
        self.page.add_script_tag(content=HELP)
        self.page.wait_for_function("model('map-0').renderers[0].data_source.data.x.length > 0")
        return self

    def see(self, text: str) -> None:
        """Wait until a text stands on the page."""
        self.page.wait_for_function("(text) => words().includes(text)", arg=text)

    def run(self, code: str) -> Any:
        """Evaluate an expression in the page; `model(name)` is a model of it, `slider` its slider."""
        return self.page.evaluate(code)


HELP = r"""
window.models = () => [...Bokeh.documents[0]._all_models.values()]
window.model = (name) => models().find((one) => one.name === name)
Object.defineProperty(window, "slider", {get: () => models().find((one) => one.type === "Slider")})
// what stands on the page, the insides of widgets included
window.words = (node = document.body) => [...node.childNodes].map((child) =>
  child.nodeType === Node.TEXT_NODE ? child.textContent
  : ["STYLE", "SCRIPT"].includes(child.nodeName) ? "" : words(child.shadowRoot ?? child)).join("\n")
// where a point of a figure's axes lies in the window
window.spot = (name, x, y) => {
  const view = Bokeh.index.find_one(model(name))
  view.el.scrollIntoView({block: "center"})
  const box = view.canvas_view.el.getBoundingClientRect()
  return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)]
}
window.select = (title) => models().find((one) => one.type === "Select" && one.title === title)
"""


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    """Give an empty page of the usual size."""
    opened = Tab(browser)
    yield opened
    opened.page.close()
