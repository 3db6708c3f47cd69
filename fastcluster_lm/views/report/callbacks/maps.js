// Draw the maps of the frame that the slider names: places, colours, marks, hover text, titles, legend, cluster table.
const n_frames = frames.data.step.length
slider.disabled = play.disabled = n_frames < 2
if (n_frames > 1 && (slider.end !== n_frames - 1 || !slider.tags.length)) {
  // who looks at the newest map goes on doing so
  const at_end = slider.value === slider.end || !slider.tags.length
  slider.tags = ["placed"]
  slider.end = n_frames - 1
  if (at_end) slider.value = n_frames - 1
}
const frame = Math.min(slider.value, n_frames - 1)
const is_dark = dark.active
const step = n_frames ? frames.data.step[frame] : null
const focus = Number(layer.value)
const n_layers = sources.length
// the points of one token behind those of another
const n_tokens = position.options.length, token = position.options.indexOf(position.value)
const points = maps.data.points === undefined ? undefined : maps.data.points[frame]

const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)
const name_of = (kind, value) => (names[kind] && names[kind][value] !== undefined ? names[kind][value] : value)

// the score that the heat map shows, at this step
function score_at(column, at_layer) {
  const row = series.data.name.indexOf(`${place()}|${column}`)
  const probe = probes.data.step.indexOf(step)
  if (row < 0 || probe < 0 || scores.data.values === undefined) return NaN
  return scores.data.values[probe][row * n_layers + at_layer]
}
function place() {
  return `${position.value}|${split.value}|${space.value}|${group.value}|${labels.value}`
}

// one text, colour and mark a point, made anew only where they differ from what is drawn
function describe(set) {
  const kinds = Object.keys(sets.data).filter((kind) => sets.data[kind][set] != null)
  const n = sets.data[kinds[0]][set].length
  const column = sets.data[colour.value] && sets.data[colour.value][set]
  const shown = [], fill = [], mark = [], text = []
  for (let i = 0; i < n; i++) {
    if (part.value !== "both" && sets.data.split[set][i] !== Number(part.value === "validation")) continue
    const value = column ? column[i] : 0
    shown.push(i)
    fill.push(palette[value % palette.length])
    mark.push(markers[Math.floor(value / palette.length) % markers.length])
    text.push(kinds.map((kind) => `${kind} ${name_of(kind, sets.data[kind][set][i])}`).join("\n"))
  }
  return {shown, fill, mark, text}
}

function draw_legend(set) {
  const column = sets.data[colour.value] && sets.data[colour.value][set]
  if (!column) return
  const values = [...new Set(column)].sort((a, b) => a - b)
  const most = 72
  const items = values.slice(0, most).map((value) => {
    const sign = signs[Math.floor(value / palette.length) % signs.length]
    const tint = palette[value % palette.length]
    return `<span class="key"><span class="sign" style="color:${tint}">${sign}</span>${escape(name_of(colour.value, value))}</span>`
  })
  if (values.length > most) items.push(`<span class="key">and ${values.length - most} more</span>`)
  const twice = values.length > palette.length * markers.length ? " Some share a colour and mark." : ""
  legend.text = `<div class="legend">${items.join(" ")}${twice}</div>`
}

function draw_table() {
  if (table === null) return
  const tables = maps.data.tables === undefined ? undefined : maps.data.tables[frame]
  const data = {cluster: [], task: [], name: [], count: [], share: []}
  if (tables !== undefined && tables.length) {
    const k = Math.round(Math.sqrt(tables.length / (n_tokens * n_layers)))
    for (let cluster = 0; cluster < k; cluster++) {
      let total = 0
      const at = (task) => tables[((token * n_layers + focus) * k + cluster) * k + task]
      for (let task = 0; task < k; task++) total += at(task)
      for (let task = 0; task < k; task++) {
        data.cluster.push(cluster)
        data.task.push(task)
        data.name.push(String(name_of("task", task)))
        data.count.push(at(task))
        data.share.push(total ? at(task) / total : 0)
      }
    }
  }
  table.data = data
  table_title.text = `Clusters and tasks, layer ${focus}`
}

if (points !== undefined && sets.data.split !== undefined) {
  const set = frames.data.set[frame]
  const key = [set, colour.value, part.value, is_dark, sets.data.split.length].join("|")
  const renewed = memory.tags[0] !== key
  if (renewed) {
    memory.tags = [key, describe(set)]
    draw_legend(set)
  }
  const {shown, fill, mark, text} = memory.tags[1]
  const n = points.length / (2 * n_layers)
  const begin = token * n / n_tokens
  for (let one = 0; one < n_layers; one++) {
    const half = bounds.data.half[one]
    const low_x = bounds.data.x[one] - half, low_y = bounds.data.y[one] - half
    const unit = 2 * half / 65535
    const x = new Float32Array(shown.length), y = new Float32Array(shown.length)
    for (let i = 0; i < shown.length; i++) {
      const at = begin + shown[i]
      const across = points[one * n + at], up = points[(n_layers + one) * n + at]
      // a layer whose states were not finite has no map at this step
      const none = across === 0 && up === 0
      x[i] = none ? NaN : low_x + unit * across
      y[i] = none ? NaN : low_y + unit * up
    }
    sources[one].data = renewed ? {x, y, fill, mark, text} : {...sources[one].data, x, y}
    const value = score_at(score.value, one), chance = score_at(`null_${score.value}`, one)
    const said = Number.isNaN(value) ? "" : `   ${value.toFixed(2)}${Number.isNaN(chance) ? "" : ` (null ${chance.toFixed(2)})`}`
    headings[one].text = `Layer ${one}${said}`
    headings[one].text_font_style = one === focus ? "bold" : "normal"
  }
}
draw_table()

// the curves below follow once the slider rests
clearTimeout(play.tags[1])
play.tags = [play.tags[0] ?? 0, setTimeout(() => {
  for (const line of cursors) line.location = step ?? -1
}, 150)]
const probe_steps = probes.data.step
const at = probe_steps.indexOf(step)
if (at >= 0) {
  const left = at ? (probe_steps[at - 1] + step) / 2 : step - (probe_steps.length > 1 ? (probe_steps[1] - step) / 2 : 0.5)
  const right = at < probe_steps.length - 1 ? (probe_steps[at + 1] + step) / 2 : 2 * step - left
  here.data = {left: [left], right: [right], bottom: [focus - 0.5], top: [focus + 0.5]}
}
