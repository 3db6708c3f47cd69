"""The report of a run as one page, for a file or live; it needs Bokeh, and imports it with its first use."""
