"use strict";
// The page's data, as the engine wrote them, and the state that the views share.

const Data = JSON.parse(document.getElementById("data").textContent);
const COUNT = Data.meta.blocks.length;
const ALL_ON = 2 ** COUNT - 1;

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Numbers of every setting of the shortcuts that was computed: settings.start.get(mask)[block] -> {lent, shortcut, branch, total, cosine}
const settings = { start: new Map(), trained: new Map() };
// maps.start[block] -> {channels, inputs, arrays: {x, branch, z, dz, back, dx}}; an array has shape, scale, values (int8)
const maps = { start: [], trained: [] };
const pixels = [];

async function unpack() {
  for (const image of Data.images) pixels.push(await inflate(image.pixels));
  for (const when of ["start", "trained"]) {
    const packed = Data.states[when].settings;
    const bytes = await inflate(packed.data);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    packed.masks.forEach((mask, row) => {
      const blocks = [];
      for (let k = 0; k < COUNT; k++) {
        const number = (field) => view.getFloat32(4 * ((row * COUNT + k) * packed.fields.length + field), true);
        blocks.push({ lent: number(0), shortcut: number(1), branch: number(2), total: number(3), cosine: number(4) });
      }
      settings[when].set(mask, blocks);
    });
    for (const one of Data.states[when].maps) maps[when].push(await unpackMaps(one));
    maps[when].forEach((one, k) => {
      if (k > 0) { // a block's input is what the block below put out, and so are their gradients
        one.arrays.x = maps[when][k - 1].arrays.z;
        one.arrays.dx = maps[when][k - 1].arrays.dz;
      }
    });
  }
}

async function unpackMaps(one) {
  const bytes = await inflate(one.arrays);
  const arrays = {};
  let place = 0;
  for (const [name, shape] of Object.entries(one.shape)) {
    const size = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { shape, scale: one.scale[name], values: new Int8Array(bytes.buffer, bytes.byteOffset + place, size) };
    place += size;
  }
  return { channels: one.channels, inputs: one.input_channels, arrays };
}

// One image and channel of an array, as numbers.
function plane(array, image, channel) {
  const [, channels, height, width] = array.shape;
  const start = (image * channels + channel) * height * width;
  const values = new Float32Array(height * width);
  for (let i = 0; i < values.length; i++) values[i] = (array.values[start + i] * array.scale) / 127;
  return { height, width, values };
}

// The ledger's rows at a setting; those of all shortcuts on are the engine's own.
function rowsAt(when, mask) {
  if (mask === ALL_ON) {
    return Data.states[when].ledger.map((r) => ({
      lent: r.lent, shortcut: r.through_shortcut, branch: r.through_branch, total: r.total, ratio: r.ratio, cosine: r.cosine,
    }));
  }
  const found = settings[when].get(mask);
  return found && found.map((one, k) => {
    const on = Boolean(mask & (1 << k));
    return { ...one, ratio: on ? one.branch / one.shortcut : null, cosine: on ? one.cosine : null };
  });
}

// What the views share. `set` changes it and tells those who asked with `watch`.
const App = {
  when: "start", block: Math.floor(COUNT / 2), mask: ALL_ON, step: 0, image: 0, channel: 0,
  listeners: [],
  watch(listener) { this.listeners.push(listener); },
  set(changes) {
    Object.assign(this, changes);
    for (const listener of this.listeners) listener(changes);
  },
};

// Answers are kept where the browser allows it (a page opened from disk may not).
const Answers = {
  key: `tinyres ${Data.meta.command}`,
  read() { try { return JSON.parse(localStorage.getItem(this.key)) || {}; } catch { return {}; } },
  keep(view, answer) {
    try { localStorage.setItem(this.key, JSON.stringify({ ...this.read(), [view]: answer })); } catch { /* kept in the page alone */ }
  },
};
