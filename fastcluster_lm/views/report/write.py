"""A report as one file that opens without a network: the page's parts, Bokeh itself and the data, all inline."""

from collections.abc import Sequence

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import TabPanel, Tabs
from bokeh.resources import INLINE

from fastcluster_lm.views.report.compare import build_comparison
from fastcluster_lm.views.report.look import parts_style, text_file
from fastcluster_lm.views.report.page import RunPage, dark_toggle
from fastcluster_lm.views.report.sources import RunSources


def report_html(runs: Sequence[RunSources]) -> str:
    """Build the report of one run, or of several behind tabs with a comparison first.

    Errors: RunFolderError if a map is damaged
    """
    dark = dark_toggle()
    pages = [RunPage(run, packed=True, dark=dark) for run in runs]
    document = Document()
    # the title is escaped by the frame; names of runs are of the user's making
    document.title = ", ".join(run.history.name for run in runs)
    whole = pages[0].root if len(pages) == 1 else _tabs(pages)
    document.add_root(column(dark, whole, sizing_mode="stretch_width"))
    for page in pages:
        document.js_on_event(DocumentReady, page.drawing)
    return file_html(document, INLINE, template=page_template(), title=document.title)


def page_template() -> str:
    """Give the frame of a page: its style, and no link to anywhere."""
    return f"{{% block postamble %}}<style>{text_file('page.css')}</style>{{% endblock %}}"


def _tabs(pages: Sequence[RunPage]) -> Tabs:
    comparison, figures = build_comparison([page.data.history for page in pages])
    pages[0].dress(figures)
    panels = [TabPanel(title="Comparison", child=comparison)]
    panels += [TabPanel(title=page.data.history.name, child=page.root) for page in pages]
    return Tabs(tabs=panels, sizing_mode="stretch_width", stylesheets=[parts_style()])
