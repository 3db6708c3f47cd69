// Move the slider on, map by map, until the last one or until the button is pressed again.
const PAUSE_MS = 350
clearInterval(play.tags[0])
play.label = play.active ? "❚❚ Pause" : "▶ Play"
if (play.active) {
  const last = () => frames.data.step.length - 1
  if (slider.value >= last()) slider.value = 0
  const timer = setInterval(() => {
    if (slider.value < last()) slider.value += 1
    else play.active = false
  }, PAUSE_MS)
  play.tags = [timer, play.tags[1] ?? 0]
}
