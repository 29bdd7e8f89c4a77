// A picture as the model's input, to the bit as Pillow and `myllm.data.images` make it.

const MAX_ASPECT = 16;
const PRECISION_BITS = 22; // of Pillow's weights: its sums fit into 32 bits

// Pillow's filters: how far each reaches, and its weight at a distance.
const FILTERS = {
  box: [0.5, x => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, x => {
    x = Math.abs(x);
    return x === 0 ? 1 : x >= 1 ? 0 : (Math.sin(Math.PI * x) / (Math.PI * x)) * (0.54 + 0.46 * Math.cos(Math.PI * x));
  }],
  bicubic: [2, x => {
    x = Math.abs(x);
    const a = -0.5;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
  lanczos: [3, x => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// {width, height, data}: RGB bytes, three a pixel. From RGBA bytes on which nothing shines through.
export function fromRgba({ width, height, data }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width, height, data: rgb };
}

// -> Float32Array (3, H, W), normalised. `preprocess` is what config.json holds.
export function preprocessed(image, preprocess) {
  const [height, width] = preprocess.image_size;
  const scaled = preprocess.image_size.map(side => Math.floor(side / preprocess.crop_pct));
  if (image.width !== width || image.height !== height || scaled[0] !== height || scaled[1] !== width) {
    image = cropped(rescaled(limited(image), scaled, preprocess), height, width, preprocess);
  }
  const planes = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(preprocess.mean[channel]);
    const std = Math.fround(preprocess.std[channel]);
    for (let at = 0; at < height * width; at++) {
      const share = Math.fround(image.data[3 * at + channel] / 255);
      planes[channel * height * width + at] = Math.fround(share - mean) / std;
    }
  }
  return planes;
}

// Longer pictures lose their ends.
function limited(image) {
  const longest = MAX_ASPECT * Math.min(image.width, image.height);
  if (Math.max(image.width, image.height) <= longest) return image;
  const left = Math.floor(Math.max(0, image.width - longest) / 2);
  const top = Math.floor(Math.max(0, image.height - longest) / 2);
  return part(image, left, top, Math.min(image.width, longest), Math.min(image.height, longest));
}

function rescaled(image, scaled, { crop_mode, interpolation }) {
  let size;
  if (crop_mode === 'squash') {
    size = scaled;
  } else if (crop_mode === 'center' && scaled[0] === scaled[1]) {
    const shorter = Math.min(image.width, image.height);
    size = [image.height, image.width].map(side => Math.floor((scaled[0] * side) / shorter));
  } else {
    const ratios = [image.height / scaled[0], image.width / scaled[1]];
    const ratio = crop_mode === 'border' ? Math.max(...ratios) : Math.min(...ratios);
    size = [image.height, image.width].map(side => Math.max(1, roundedToEven(side / ratio)));
  }
  return resized(image, size[1], size[0], interpolation);
}

function cropped(image, height, width, { crop_mode, mean }) {
  const colour = crop_mode === 'border' ? mean.map(value => roundedToEven(255 * value)) : [0, 0, 0];
  const whole = { width: Math.max(width, image.width), height: Math.max(height, image.height) };
  whole.data = new Uint8Array(whole.width * whole.height * 3);
  for (let at = 0; at < whole.data.length; at++) whole.data[at] = colour[at % 3];
  const left = Math.floor((whole.width - image.width) / 2);
  const top = Math.floor((whole.height - image.height) / 2);
  for (let row = 0; row < image.height; row++) {
    const line = image.data.subarray(row * image.width * 3, (row + 1) * image.width * 3);
    whole.data.set(line, ((top + row) * whole.width + left) * 3);
  }
  return part(whole, roundedToEven((whole.width - width) / 2), roundedToEven((whole.height - height) / 2), width, height);
}

function part(image, left, top, width, height) {
  const data = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row++) {
    const from = ((top + row) * image.width + left) * 3;
    data.set(image.data.subarray(from, from + width * 3), row * width * 3);
  }
  return { width, height, data };
}

// Python's round
function roundedToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

// As Pillow's Image.resize: each direction alone, through bytes, with antialiasing. The second reads what the first has
// rounded, so their order shows: rows come first where they shrink by more than twice what columns do.
export function resized(image, width, height, interpolation) {
  if (interpolation === 'nearest') return nearest(image, width, height);
  const rowsFirst = image.height > height && image.height - height > 2 * (image.width - width);
  if (rowsFirst) image = down(image, height, interpolation);
  if (width !== image.width) image = across(image, width, interpolation);
  return height !== image.height ? down(image, height, interpolation) : image;
}

function down(image, height, interpolation) {
  return turned(across(turned(image), height, interpolation));
}

function nearest(image, width, height) {
  const data = new Uint8Array(width * height * 3);
  const [rows, columns] = [places(image.height, height), places(image.width, width)];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = (rows[row] * image.width + columns[column]) * 3;
      data.set(image.data.subarray(from, from + 3), (row * width + column) * 3);
    }
  }
  return { width, height, data };
}

// Added up step by step: where a step ends between two pixels, Pillow's rounding decides.
function places(before, after) {
  let place = (before / after) * 0.5;
  return Array.from({ length: after }, () => {
    const found = Math.floor(place);
    place += before / after;
    return found;
  });
}

function turned({ width, height, data }) {
  const out = new Uint8Array(data.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = (row * width + column) * 3;
      const to = (column * height + row) * 3;
      out[to] = data[from];
      out[to + 1] = data[from + 1];
      out[to + 2] = data[from + 2];
    }
  }
  return { width: height, height: width, data: out };
}

function across(image, width, interpolation) {
  const weights = weightsOf(image.width, width, interpolation);
  const data = new Uint8ClampedArray(width * image.height * 3);
  for (let row = 0; row < image.height; row++) {
    for (let column = 0; column < width; column++) {
      const { first, values } = weights[column];
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (PRECISION_BITS - 1);
        let from = (row * image.width + first) * 3 + channel;
        for (let at = 0; at < values.length; at++, from += 3) sum += image.data[from] * values[at];
        data[(row * width + column) * 3 + channel] = Math.floor(sum / 2 ** PRECISION_BITS);
      }
    }
  }
  return { width, height: image.height, data };
}

function weightsOf(before, after, interpolation) {
  const [reach, weight] = FILTERS[interpolation];
  const scale = before / after;
  const stretch = Math.max(scale, 1); // what is made larger is not blurred
  const found = [];
  for (let place = 0; place < after; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * stretch + 0.5));
    const last = Math.min(before, Math.trunc(centre + reach * stretch + 0.5));
    const values = [];
    for (let at = first; at < last; at++) values.push(weight((at - centre + 0.5) * (1 / stretch)));
    const sum = values.reduce((total, value) => total + value, 0);
    const whole = values.map(value => {
      const large = (sum !== 0 ? value / sum : value) * 2 ** PRECISION_BITS;
      return Math.trunc(large < 0 ? large - 0.5 : large + 0.5);
    });
    found.push({ first, values: whole });
  }
  return found;
}
