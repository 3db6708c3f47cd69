// Unpack what the page carries as gzip bytes, into the sources that all else is drawn from; then draw.
// `packed` has a row for each array: whose it is, its bytes, its type, how many entries it is cut into.
const kinds = {uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

function assemble(planes, type, entries, moving) {
  const size = kinds[type].BYTES_PER_ELEMENT
  const count = planes.length / size
  const bytes = new Uint8Array(planes.length)
  for (let plane = 0; plane < size; plane++) {
    for (let i = 0; i < count; i++) bytes[i * size + plane] = planes[plane * count + i]
  }
  const flat = new kinds[type](bytes.buffer)
  const length = entries ? count / entries : 0
  // each entry was written as its difference from the one before; a Uint16Array adds modulo 2 ** 16 by itself
  if (moving) for (let i = length; i < count; i++) flat[i] += flat[i - length]
  return Array.from({length: entries}, (_, entry) => flat.slice(entry * length, (entry + 1) * length))
}

async function unpack() {
  const {target, column, bytes, type, entries, moving} = packed.data
  const columns = await Promise.all(bytes.map(async (some, i) =>
    assemble(await inflate(some), type[i], entries[i], moving[i])))
  for (const [name, source] of Object.entries({maps, scores})) {
    const data = {}
    for (let i = 0; i < column.length; i++) if (target[i] === name) data[column[i]] = columns[i]
    source.data = data
  }
}

unpack().then(() => draw_all.execute(cb_obj))
