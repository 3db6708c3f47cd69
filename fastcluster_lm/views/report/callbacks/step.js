// Say which step a value of the slider stands for.
const n = frames.data.step.length
const frame = Math.min(tick, n - 1)
if (n === 0) return "no maps yet"
const cold = frames.data.warm[frame][position.options.indexOf(position.value)] ? "" : ", started cold"
return `${frames.data.step[frame]} of ${frames.data.step[n - 1]}, map ${frame + 1} of ${n}${cold}`
