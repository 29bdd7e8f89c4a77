// Heat maps by occlusion, as in `myllm.attribution`: how much less likely a token is when a part of the picture is
// covered. An exported captioner has no gradients, which the other faithful methods need.

const BATCH = 8; // pictures that are encoded at once
const LONGEST = 32; // cells of a map's longer side

// pixels: Float32Array (3, H, W), preprocessed; size: [H, W]; grid: [rows, columns] of the cells to cover.
// logprobsOf(pixels, count): resolves to the log-probabilities of the T tokens for each of `count` pictures.
// Resolves to T maps, Float64Array (rows * columns), each of which sums to one, or is zero.
export async function occlusionMaps(pixels, [height, width], [rows, columns], logprobsOf, progress = () => {}) {
  const [uncovered] = await logprobsOf(pixels, 1);
  const maps = uncovered.map(() => new Float64Array(rows * columns));
  for (let first = 0; first < rows * columns; first += BATCH) {
    const count = Math.min(BATCH, rows * columns - first);
    const covered = new Float32Array(count * pixels.length);
    for (let index = 0; index < count; index++) {
      const copy = covered.subarray(index * pixels.length, (index + 1) * pixels.length);
      copy.set(pixels);
      coverCell(copy, first + index, [height, width], [rows, columns]);
    }
    (await logprobsOf(covered, count)).forEach((logprobs, index) => {
      logprobs.forEach((logprob, token) => { maps[token][first + index] = Math.max(0, uncovered[token] - logprob); });
    });
    progress((first + count) / (rows * columns));
  }
  return maps.map(normalize);
}

// With zeros, which are the mean colour.
function coverCell(pixels, cell, [height, width], [rows, columns]) {
  for (let y = 0; y < height; y++) {
    if (Math.floor(y * rows / height) !== Math.floor(cell / columns)) continue;
    for (let x = 0; x < width; x++) {
      if (Math.floor(x * columns / width) !== cell % columns) continue;
      for (let channel = 0; channel < 3; channel++) pixels[(channel * height + y) * width + x] = 0;
    }
  }
}

function normalize(map) {
  const sum = map.reduce((total, value) => total + value, 0);
  return sum > 0 ? map.map(value => value / sum) : map;
}

// The maps of words from those of tokens, in the coordinates of the picture: what `POST /v1/caption` of `myllm serve`
// answers as `attention` and as each word's `map`.
// words: {tokens: [first, stop]}; size: {width, height} of the picture; window: [left, top, right, bottom] of the part
// that the model receives.
export function wordMaps(maps, words, [rows, columns], size, window) {
  const scale = LONGEST / Math.max(size.width, size.height);
  const [width, height] = [size.width, size.height].map(side => Math.max(1, Math.round(side * scale)));
  const projected = words.map(({ tokens: [first, stop] }) => {
    const sum = new Float64Array(width * height);
    for (const map of maps.slice(first, stop)) {
      normalize(project(map, [rows, columns], [width, height], size, window)).forEach((value, cell) => {
        sum[cell] += value / (stop - first);
      });
    }
    return sum;
  });
  const greatest = projected.flatMap(map => [...map]).reduce((most, value) => Math.max(most, value), 0);
  const encode = map => btoa(String.fromCharCode(...map.map(value => Math.round(255 * value / (greatest || 1)))));
  return { attention: { width, height, peak: greatest * width * height }, maps: projected.map(encode) };
}

// A map (rows, columns) of the window to one (height, width) of the picture: interpolated, and zero outside the window.
function project(map, [rows, columns], [width, height], size, [left, top, right, bottom]) {
  const result = new Float64Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = ((y + 0.5) * size.height / height - top) / (bottom - top);
    if (row < 0 || row > 1) continue;
    for (let x = 0; x < width; x++) {
      const column = ((x + 0.5) * size.width / width - left) / (right - left);
      if (column < 0 || column > 1) continue;
      result[y * width + x] = interpolate(map, row * rows - 0.5, column * columns - 0.5, rows, columns);
    }
  }
  return result;
}

function interpolate(map, row, column, rows, columns) {
  const at = (y, x) => map[Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x))];
  const [y, x] = [Math.floor(row), Math.floor(column)];
  const [down, along] = [row - y, column - x];
  return (1 - down) * ((1 - along) * at(y, x) + along * at(y, x + 1))
    + down * ((1 - along) * at(y + 1, x) + along * at(y + 1, x + 1));
}
