// Go where the heat map was clicked: its layer, and the map nearest to its step.
const one = Math.round(cb_obj.y)
if (one >= 0 && one < layers) layer.value = String(one)
const steps = frames.data.step
let nearest = 0
steps.forEach((step, i) => {
  if (Math.abs(step - cb_obj.x) < Math.abs(steps[nearest] - cb_obj.x)) nearest = i
})
if (steps.length) slider.value = nearest
