// Give the page and every figure light or dark colours; the first time as the reader's system has them.
if (!dark.tags.length) {
  dark.tags = ["asked"]
  dark.active = window.matchMedia("(prefers-color-scheme: dark)").matches
}
const look = dark.active ? dark_look : light_look
document.documentElement.dataset.look = dark.active ? "dark" : "light"
dark.label = dark.active ? "Light" : "Dark"
for (const plot of plots) {
  plot.background_fill_color = look.plot
  plot.border_fill_color = look.page
  plot.outline_line_color = look.line
  for (const axis of [...plot.below, ...plot.left, ...plot.right]) {
    if ("axis_label_text_color" in axis) {
      axis.axis_label_text_color = axis.major_label_text_color = look.text
      axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = look.line
    }
    if ("grid_line_color" in axis) axis.grid_line_color = look.grid
    if ("bar_line_color" in axis) {
      axis.background_fill_color = look.page
      axis.major_label_text_color = axis.title_text_color = look.text
    }
  }
  for (const grid of plot.center) if ("grid_line_color" in grid) grid.grid_line_color = look.grid
  for (const legend of plot.center.filter((part) => "label_text_color" in part)) {
    legend.label_text_color = look.text
    legend.background_fill_color = look.plot
    legend.border_line_color = look.line
  }
  if ("border_line_color" in plot) plot.border_line_color = look.page
  if (plot.title) plot.title.text_color = look.text
}
for (const heading of headings) heading.text_color = look.text
for (const line of inked) line.line_color = look.text
