"""The report in a real browser: it opens offline, is what the run is, answers to hands, and runs no foreign text."""

from pathlib import Path

import numpy as np
import pytest

from fastcluster_lm.views.report.history import read_history
from fastcluster_lm.views.report.sources import RunSources
from fastcluster_lm.views.report.write import report_html
from tests.views.report.conftest import Tab
from tests.views.report.made_run import HOSTILE, MadeRun, ari_of, make_run


def tabulate(points, task):
    tables = np.zeros((len(points), 3, 3), int)
    tables[:] = np.diag(np.bincount(task, minlength=3))
    return tables


@pytest.fixture(scope="module")
def report(made: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the made run's report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    source = RunSources(read_history(made.folder), texts=[HOSTILE] * 9, tabulate=tabulate)
    path.write_text(report_html([source]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(browser, report):
    """Give the report in a tab that all tests here share."""
    tab = Tab(browser).open(report)
    yield tab
    tab.page.close()


def drawn(opened: Tab, layer: int) -> np.ndarray:
    data = opened.run(
        f"(({{x, y}}) => [Array.from(x), Array.from(y)])(model('map-{layer}').renderers[0].data_source.data)"
    )
    return np.array(data).T


def test_it_opens_without_a_complaint_and_without_a_network(opened, report, tmp_path):
    opened.page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert opened.problems == []
    assert opened.requests == [report.as_uri()]
    text = opened.run("words()")
    assert "A map's distances are not metric" in text and "the mean score when whole distributions" in text
    assert "4 probes took" in text and "early-stopping mark 100" in text


def test_the_slider_shows_each_map_where_the_run_has_it(opened, made):
    assert opened.run("[slider.start, slider.end, slider.value]") == [0, 3, 3]
    bounds = opened.run("[model('map-1').x_range.start, model('map-1').x_range.end]")
    for frame, step in enumerate((0, 50, 100, 200)):
        opened.run(f"slider.value = {frame}")
        stored = made.folder.read_map(step)[0]["points"][1]
        # half a step of the 65,535 between the bounds, and what float32 rounds
        quantum = (bounds[1] - bounds[0]) / 65535
        assert abs(drawn(opened, 1) - stored).max() <= quantum * 0.51
        opened.see(f"{step} of 200, map {frame + 1} of 4")
        assert (", started cold" in opened.run("words()")) == (step == 0)
        assert opened.run("model('label-2').text") == f"Layer 2   {ari_of(step, 2):.2f} (null 0.10)"


STEPS = """async () => {
  const taken = []
  for (let frame = 0; frame <= slider.end; frame++) {
    const start = performance.now()
    slider.value = frame
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))
    taken.push(performance.now() - start)
  }
  return taken
}"""


def test_a_step_of_the_slider_draws_the_maps_alone(opened):
    drawn_so_far = "['map-0', 'map-1', 'loss', 'cost', 'curve-ari', 'clusters'].map((name) => "
    drawn_so_far += "Bokeh.index.find_one(model(name))._render_count)"
    opened.run("slider.value = 0")
    opened.page.wait_for_timeout(500)
    before = opened.run(drawn_so_far)
    opened.run("slider.value = 1")
    opened.page.wait_for_timeout(100)
    drawn_now = [now - then for now, then in zip(opened.run(drawn_so_far), before, strict=True)]
    # curves follow later, when the slider rests
    assert drawn_now[2:5] == [0, 0, 0] and all(1 <= times <= 2 for times in drawn_now[:2])


@pytest.mark.slow
def test_a_step_of_the_slider_is_quick(browser, tmp_path):
    run = make_run(tmp_path / "run", n_layers=7, n_points=1000, n_tasks=12)
    for step in range(0, 500, 50):
        run.add(step)
    path = tmp_path / "large.html"
    path.write_text(report_html([RunSources(read_history(run.folder))]), encoding="utf-8")
    tab = Tab(browser).open(path)
    # the page's promise, in ms; two shared cores without a graphics card took about 64, and 52 to 57 for 576 points
    assert min(min(tab.run(STEPS)) for _ in range(2)) < 50
    tab.page.close()


def test_the_keyboard_moves_the_slider(opened):
    opened.run("slider.value = 1")
    opened.page.locator(".noUi-handle").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.run("slider.value") == 2
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press("ArrowLeft")
    assert opened.run("slider.value") == 0


PRESS_TWICE = """async () => {
  const play = models().find((one) => one.label === "▶ Play")
  const soon = () => new Promise((done) => setTimeout(done, 5))
  play.active = true
  while (slider.value === 3) await soon()
  play.active = false
  while (play.label !== "▶ Play") await soon()
  return slider.value
}"""


def test_play_goes_to_the_last_map_and_stops(opened):
    opened.run("slider.value = 1")
    opened.page.get_by_role("button", name="Play").click()
    opened.page.wait_for_function("slider.value === 3")
    opened.page.get_by_role("button", name="Play").wait_for()
    # pressed at the end it begins anew, and pressed again it stops where it is
    at = opened.run(PRESS_TWICE)
    assert at < 3
    opened.page.wait_for_timeout(900)
    assert opened.run("slider.value") == at


def test_the_heat_map_shows_the_chosen_score_beside_its_null(opened):
    cells = "(({step, layer, value, chance}) => step.map((_, i) => [step[i], layer[i], value[i], chance[i]]))"
    of = f"{cells}(model('heat-value').renderers[0].data_source.data)"
    found = opened.run(of)
    assert len(found) == 12
    for step, layer, value, chance in found:
        assert value == pytest.approx(ari_of(step, layer), rel=2**-13) and chance == pytest.approx(0.1, rel=2**-13)
    opened.page.get_by_label("Score").select_option(label="F1, pairwise")
    assert {cell[2] for cell in opened.run(of)} == {0.5}
    assert opened.run("model('heat-chance').title.text") == "No null is stored for this choice"
    assert opened.run("model('heat-value').title.text") == "F1, pairwise"
    opened.run("select('Score').value = 'ari'")
    assert opened.run("model('heat-chance').title.text").startswith("Null of ARI")
    opened.run("select('Among points of').value = 'input'; select('Labels').value = 'input'")
    assert opened.run(of) == [] and "no rows" in opened.run("model('heat-value').title.text")
    opened.run("select('Among points of').value = 'input_output'; select('Labels').value = 'task'")
    assert len(opened.run(of)) == 12


def test_a_click_on_the_heat_map_goes_to_its_step_and_layer(opened):
    opened.run("slider.value = 0; select('Layer').value = '0'")
    x, y = opened.run("spot('heat-value', 93, 2)")
    opened.page.mouse.click(x, y)
    opened.page.wait_for_function("slider.value === 2")
    assert opened.run("select('Layer').value") == "2"
    assert opened.run("model('label-2').text_font_style") == "bold"
    opened.see("100 of 200, map 3 of 4")


def test_colours_and_marks_follow_the_chosen_label(opened):
    points = "model('map-0').renderers[0].data_source.data"
    looks = f"(({{fill, mark}}) => new Set(fill.map((c, i) => c + mark[i])).size)({points})"
    assert opened.run(looks) == 3
    opened.run("select('Colour').value = 'distribution'")
    assert opened.run(looks) == 6
    opened.run("select('Points').value = 'validation'")
    assert len(drawn(opened, 0)) == 24
    opened.run("select('Points').value = 'both'; select('Colour').value = 'task'")
    assert len(drawn(opened, 0)) == 48


def test_hovering_tells_the_instance_and_foreign_text_stays_text(opened):
    opened.run("slider.value = 3")
    first = "model('map-1').renderers[0].data_source.data"
    x, y = opened.run(f"spot('map-1', {first}.x[0], {first}.y[0])")
    opened.page.mouse.move(x - 3, y)
    opened.page.mouse.move(x, y)
    opened.see("split training")
    said = opened.run("words()")
    assert f"task {HOSTILE}0" in said and "{4}<b>" in said and "split training" in said
    assert opened.run("window.broken") is None and opened.page.locator("img").count() == 0


def test_the_table_of_clusters_and_tasks_is_that_of_the_layer(opened):
    data = opened.run("model('clusters').renderers[0].data_source.data")
    assert data["count"] == [8, 0, 0, 0, 8, 0, 0, 0, 8]
    assert data["share"] == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_maps_have_one_scale_in_x_and_y(opened):
    sizes = opened.run("[0, 1, 2].map((i) => [model(`map-${i}`).inner_width, model(`map-${i}`).inner_height])")
    assert all(abs(width - height) <= 1 for width, height in sizes)


def test_a_dark_system_gets_a_dark_page_that_fits_a_telephone(browser, report, tmp_path):
    tab = Tab(browser, (400, 800), "dark").open(report)
    tab.page.screenshot(path=tmp_path / "dark.png", full_page=True)
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert tab.run("model('map-0').background_fill_color") == "#1a1f26"
    # nothing hangs over the right edge
    assert tab.run("document.documentElement.scrollWidth") <= 400
    tab.page.get_by_role("button", name="Light").click()
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.run("model('map-0').background_fill_color") == "#ffffff"
    assert tab.problems == []
    tab.page.close()


def test_a_run_that_was_never_probed_has_a_page_too(browser, tmp_path):
    run = make_run(tmp_path / "run")
    run.folder.append_steps([{"step": 0, "val_accuracy": 0.0}, {"step": 1, "loss": 2.0, "step_ms": 3.0}])
    path = tmp_path / "bare.html"
    path.write_text(report_html([RunSources(read_history(run.folder), tabulate=tabulate)]), encoding="utf-8")
    tab = Tab(browser)
    tab.page.goto(path.as_uri())
    tab.page.get_by_text("Nothing was probed yet").wait_for()
    tab.page.get_by_text("no maps yet").wait_for()
    assert tab.problems == []
    tab.page.close()


def test_several_runs_stand_behind_tabs_with_a_comparison(browser, made, tmp_path):
    other = make_run(tmp_path / "other<i>")
    other.add(0)
    other.add(50)
    path = tmp_path / "both.html"
    path.write_text(report_html([RunSources(read_history(run.folder)) for run in (made, other)]), encoding="utf-8")
    tab = Tab(browser)
    tab.page.goto(path.as_uri())
    tab.page.wait_for_function("window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
    rows = tab.page.locator("tr").all_inner_texts()
    assert len(rows) == 3 and rows[2].startswith("other<i>\t0\tfused")
    assert f"{ari_of(200, 2):.2f}" in rows[1] and f"{ari_of(50, 2):.2f}" in rows[2]
    tab.page.locator(".bk-tab").nth(2).click()
    tab.page.screenshot(path=tmp_path / "both.png", full_page=True)
    tab.page.get_by_text("map 2 of 2").wait_for()
    # the run's name stays text, wherever it stands
    assert tab.page.locator("i").count() == 0
    assert tab.problems == [] and tab.requests == [path.as_uri()]
    tab.page.close()


def test_the_token_that_is_chosen_is_the_one_that_is_drawn(browser, tmp_path):
    run = make_run(tmp_path / "run", positions=("instruction", "input"))
    for step in (0, 50):
        run.add(step)
    (tmp_path / "page.html").write_text(report_html([RunSources(read_history(run.folder), tabulate=tabulate)]))
    tab = Tab(browser).open(tmp_path / "page.html")
    bounds = tab.run("[model('map-1').x_range.start, model('map-1').x_range.end]")
    arrays = run.folder.read_map(50)[0]
    for name, points in (("instruction", "points"), ("input", "points/input"), ("instruction", "points")):
        tab.run(f"select('Token').value = '{name}'")
        tab.page.wait_for_function(f"select('Token').value === '{name}'")
        assert abs(drawn(tab, 1) - arrays[points][1]).max() < (bounds[1] - bounds[0]) / 65_535
        assert tab.run("model('label-1').text") == f"Layer 1   {ari_of(50, 1 + (name == 'input')):.2f} (null 0.10)"
    assert tab.problems == []
    tab.page.close()
