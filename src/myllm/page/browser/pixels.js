// A picture as the model's input, bit for bit as Pillow and `myllm.data.images` make it.

const MAX_ASPECT = 16;
const PRECISION_BITS = 22; // of Pillow's weights, so that its sums fit into 32 bits

// Pillow's filters: radius, and weight at a distance from the centre.
const FILTERS = {
  box: [0.5, x => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, x => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, x => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  }],
  lanczos: [3, x => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// RGBA bytes of an opaque picture -> {width, height, data} of RGB bytes.
export function fromRgba({ width, height, data }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return { width, height, data: rgb };
}

// {width, height, data} of RGB bytes -> Float32Array (3, H, W), normalized. config: `preprocess` of config.json.
export function preprocess(image, config) {
  const [height, width] = config.image_size;
  const resizeTo = config.image_size.map(side => Math.floor(side / config.crop_pct));
  if (image.width !== width || image.height !== height || resizeTo[0] !== height || resizeTo[1] !== width) {
    image = cropCenter(resizeToFit(limitAspect(image), resizeTo, config), height, width, config);
  }
  const planes = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(config.mean[channel]);
    const std = Math.fround(config.std[channel]);
    for (let pixel = 0; pixel < height * width; pixel++) {
      const value = Math.fround(image.data[3 * pixel + channel] / 255);
      planes[channel * height * width + pixel] = Math.fround(value - mean) / std;
    }
  }
  return planes;
}

// The part of a picture that `preprocess` keeps: [left, top, right, bottom] in the picture's pixels. An added border
// lies outside of the picture.
export function visibleWindow({ width, height }, config) {
  const box = limitedBox(width, height);
  const target = [config.image_size[1], config.image_size[0]];
  const resizeTo = config.image_size.map(side => Math.floor(side / config.crop_pct));
  const scaled = scaledSize([box.height, box.width], resizeTo, config).reverse();
  const begins = [box.left, box.top];
  const sides = [box.width, box.height].map((length, axis) => {
    const pixel = length / scaled[axis];
    const begin = begins[axis] + cropOffset(scaled[axis], target[axis]) * pixel;
    return [begin, begin + target[axis] * pixel];
  });
  return [sides[0][0], sides[1][0], sides[0][1], sides[1][1]];
}

// Cut the ends off a picture whose longer side is over MAX_ASPECT times the shorter one.
function limitAspect(image) {
  const { left, top, width, height } = limitedBox(image.width, image.height);
  return width === image.width && height === image.height ? image : crop(image, left, top, width, height);
}

function limitedBox(width, height) {
  const longest = MAX_ASPECT * Math.min(width, height);
  const left = Math.floor(Math.max(0, width - longest) / 2);
  const top = Math.floor(Math.max(0, height - longest) / 2);
  return { left, top, width: Math.min(width, longest), height: Math.min(height, longest) };
}

function resizeToFit(image, resizeTo, config) {
  const [height, width] = scaledSize([image.height, image.width], resizeTo, config);
  return resize(image, width, height, config.interpolation);
}

// sides and resizeTo: [height, width]
function scaledSize(sides, [height, width], { crop_mode }) {
  if (crop_mode === 'squash') return [height, width];
  if (crop_mode === 'center' && height === width) {
    return sides.map(side => Math.floor((height * side) / Math.min(...sides)));
  }
  const ratios = [sides[0] / height, sides[1] / width];
  const ratio = crop_mode === 'border' ? Math.max(...ratios) : Math.min(...ratios);
  return sides.map(side => Math.max(1, roundHalfToEven(side / ratio)));
}

// Crop the middle; a smaller picture is padded with the mean colour, or with black.
function cropCenter(image, height, width, { crop_mode, mean }) {
  const [left, top] = [cropOffset(image.width, width), cropOffset(image.height, height)];
  const colour = mean.map(value => roundHalfToEven(255 * value));
  return crop(image, left, top, width, height, crop_mode === 'border' ? colour : null);
}

function cropOffset(before, after) {
  return before > after ? roundHalfToEven((before - after) / 2) : -Math.floor((after - before) / 2);
}

// A rectangle of the picture; what lies outside the picture gets the colour, or is black.
function crop(image, left, top, width, height, colour = null) {
  const data = new Uint8Array(width * height * 3);
  if (colour) data.forEach((_, index) => { data[index] = colour[index % 3]; });
  const [first, end] = [Math.max(0, left), Math.min(image.width, left + width)];
  for (let row = Math.max(0, top); row < Math.min(image.height, top + height); row++) {
    const line = image.data.subarray((row * image.width + first) * 3, (row * image.width + end) * 3);
    data.set(line, ((row - top) * width + first - left) * 3);
  }
  return { width, height, data };
}

// Python's round
function roundHalfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

// Pillow's Image.resize: one direction after the other, with antialiasing, rounded to bytes in between. The order
// changes the result: height comes first if it loses over twice as many pixels as the width.
function resize(image, width, height, interpolation) {
  const heightFirst = image.height > height && image.height - height > 2 * (image.width - width);
  if (heightFirst) image = resizeHeight(image, height, interpolation);
  if (width !== image.width) image = resizeWidth(image, width, interpolation);
  return height !== image.height ? resizeHeight(image, height, interpolation) : image;
}

function resizeHeight(image, height, interpolation) {
  return transpose(resizeWidth(transpose(image), height, interpolation));
}

function transpose({ width, height, data }) {
  const transposed = new Uint8Array(data.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const from = (row * width + column) * 3;
      const to = (column * height + row) * 3;
      transposed[to] = data[from];
      transposed[to + 1] = data[from + 1];
      transposed[to + 2] = data[from + 2];
    }
  }
  return { width: height, height: width, data: transposed };
}

function resizeWidth(image, width, interpolation) {
  const windows = (interpolation === 'nearest' ? nearestWindows : filterWindows)(image.width, width, interpolation);
  const data = new Uint8ClampedArray(width * image.height * 3);
  for (let row = 0; row < image.height; row++) {
    for (let column = 0; column < width; column++) {
      const { first, weights } = windows[column];
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (PRECISION_BITS - 1);
        let from = (row * image.width + first) * 3 + channel;
        for (let index = 0; index < weights.length; index++, from += 3) sum += image.data[from] * weights[index];
        data[(row * width + column) * 3 + channel] = Math.floor(sum / 2 ** PRECISION_BITS);
      }
    }
  }
  return { width, height: image.height, data };
}

// Like `filterWindows`, for a copy of the nearest pixel. Steps are added up, as in Pillow: if one ends between two pixels,
// the rounding of the sum decides.
function nearestWindows(before, after) {
  let position = (before / after) * 0.5;
  return Array.from({ length: after }, () => {
    const first = Math.floor(position);
    position += before / after;
    return { first, weights: [2 ** PRECISION_BITS] };
  });
}

// For each pixel after resizing: the first pixel that it is computed from, and whole-number weights from there on.
function filterWindows(before, after, interpolation) {
  const [radius, weight] = FILTERS[interpolation];
  const scale = before / after;
  const stretch = Math.max(scale, 1); // enlarging does not blur
  return Array.from({ length: after }, (_, pixel) => {
    const centre = (pixel + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - radius * stretch + 0.5));
    const end = Math.min(before, Math.trunc(centre + radius * stretch + 0.5));
    const values = [];
    for (let index = first; index < end; index++) values.push(weight((index - centre + 0.5) * (1 / stretch)));
    const sum = values.reduce((total, value) => total + value, 0);
    const weights = values.map(value => {
      const scaled = (sum !== 0 ? value / sum : value) * 2 ** PRECISION_BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, weights };
  });
}
