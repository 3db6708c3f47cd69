// Draw the heat maps and the curves of the scores that the selectors name.
const n_layers = layers
const steps = probes.data.step
const focus = Number(layer.value)
const tints = dark.active ? tints_dark : tints_light
const values = scores.data.values ?? []
const row_of = (column) =>
  series.data.name.indexOf(
    `${position.value}|${split.value}|${space.value}|${group.value}|${labels.value}|${column}`)
const at = (probe, row, one) => (row < 0 || values[probe] === undefined ? NaN : values[probe][row * n_layers + one])
const range = (row) => steps.map((_, probe) => Array.from({length: n_layers}, (_, one) => at(probe, row, one)))

// a probe's column reaches halfway to its neighbours
const edges = steps.map((step, i) => (i ? (steps[i - 1] + step) / 2 : step - (steps.length > 1 ? (steps[1] - step) / 2 : 0.5)))
if (steps.length) edges.push(2 * steps.at(-1) - edges.at(-1))

if (edges.length) {
  axis.start = axis.reset_start = edges[0]
  axis.end = axis.reset_end = edges.at(-1)
}

const row = row_of(score.value), null_row = row_of(`null_${score.value}`)
const cells = {left: [], right: [], bottom: [], top: [], step: [], layer: [], value: [], chance: []}
steps.forEach((step, probe) => {
  for (let one = 0; one < n_layers; one++) {
    const value = at(probe, row, one)
    if (Number.isNaN(value)) continue
    cells.left.push(edges[probe]); cells.right.push(edges[probe + 1])
    cells.bottom.push(one - 0.5); cells.top.push(one + 0.5)
    cells.step.push(step); cells.layer.push(one)
    cells.value.push(value); cells.chance.push(at(probe, null_row, one))
  }
})
heat.data = cells
if (unbounded.includes(score.value)) {
  // the spread of layer 0 may be without bound, so the upper end is the 98th in a hundred
  const sorted = cells.value.slice().sort((a, b) => a - b)
  mapper.low = sorted[0] ?? 0
  mapper.high = sorted[Math.floor(0.98 * (sorted.length - 1))] ?? 1
} else {
  mapper.low = 0
  mapper.high = 1
}
const shown_name = score_names[score.value]
heat_titles[0].text = cells.value.length ? shown_name : `${shown_name}: no rows for this choice`
heat_titles[1].text = cells.chance.some((value) => !Number.isNaN(value))
  ? `Null of ${shown_name}: tasks reassigned at random`
  : `No null is stored for this choice`

for (const [column, sources] of Object.entries(curves)) {
  const own = row_of(column), chance = row_of(`null_${column}`)
  const block = range(own), null_block = range(chance)
  const lines = {xs: [], ys: [], tint: [], width: [], layer: []}
  const marks = {x: [], y: [], tint: [], layer: []}
  for (let one = 0; one < n_layers; one++) {
    const kept = steps.map((_, probe) => probe).filter((probe) => !Number.isNaN(block[probe][one]))
    if (!kept.length) continue
    lines.xs.push(kept.map((probe) => steps[probe]))
    lines.ys.push(kept.map((probe) => block[probe][one]))
    lines.tint.push(tints[one]); lines.width.push(one === focus ? 3.5 : 1.3); lines.layer.push(one)
    const when = own < 0 || !series.data.settled ? NaN : series.data.settled[own][one]
    const probe = steps.indexOf(when)
    if (probe >= 0) {
      marks.x.push(when); marks.y.push(block[probe][one]); marks.tint.push(tints[one]); marks.layer.push(one)
    }
  }
  sources.lines.data = lines
  sources.marks.data = marks
  const band = {x: [], low: [], high: []}, own_null = {x: [], y: []}, ceiling = {x: [], y: []}
  const top = row_of("ceiling_output")
  steps.forEach((step, probe) => {
    const known = null_block[probe].filter((value) => !Number.isNaN(value))
    if (known.length) {
      band.x.push(step); band.low.push(Math.min(...known)); band.high.push(Math.max(...known))
    }
    if (!Number.isNaN(null_block[probe][focus])) {
      own_null.x.push(step); own_null.y.push(null_block[probe][focus])
    }
    const most = at(probe, top, focus)
    if (column === "ari" && !Number.isNaN(most)) {
      ceiling.x.push(step); ceiling.y.push(most)
    }
  })
  sources.band.data = band
  sources.own_null.data = own_null
  sources.ceiling.data = ceiling
}
