// A caption's words as buttons: each shows its confidence, and over the picture where the captioner looked for it.
// Uses the functions of heatmap.js and word_buttons.js, which the report uses, too.

const UNSURE = 0.5; // words with less confidence are marked
const MAX_RATIO = 16; // of heatmap.js: times the even share at which a map has its strongest colour
const PLACES = [
  ['at the upper left', 'at the top', 'at the upper right'],
  ['on the left', 'in the middle', 'on the right'],
  ['at the lower left', 'at the bottom', 'at the lower right'],
];

export const percent = share => `${Math.round(100 * share)}\u00a0%`;

// parts: elements of a card: {caption, description, image, canvas}; answer: of `POST /v1/caption`.
export function showWords({ caption, description, image, canvas }, answer) {
  const words = fillCaption(caption, answer);
  const show = word => {
    description.textContent = word?.dataset.description ?? '';
    canvas.hidden = !word?.dataset.map;
    if (word?.dataset.map) paintHeatMap(canvas, image, word.dataset.map);
  };
  showWhenPointedAt(words, show);
  addArrowKeys(caption, 'Words of the caption');
  show(null);
}

// Returns the buttons, which hold a description and a map.
function fillCaption(caption, { caption: text, words, attention }) {
  const parts = [];
  const buttons = [];
  let end = 0;
  for (const word of words) {
    const start = text.indexOf(word.text, end);
    if (start < 0) continue;
    const before = text.slice(end, start);
    end = start + word.text.length;
    if (!/[\p{L}\p{N}]/u.test(word.text)) { // punctuation, which stays on the line of its word
      const unbroken = document.createElement('span');
      unbroken.className = 'unbroken';
      unbroken.append(...parts.splice(-1), before, word.text);
      parts.push(unbroken);
      continue;
    }
    const button = makeButton(word, attention);
    button.style.setProperty('--index', buttons.length); // for the style sheet
    buttons.push(button);
    parts.push(before, button);
  }
  caption.replaceChildren(...parts, text.slice(end));
  return buttons;
}

function makeButton(word, attention) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = word.confidence !== null && word.confidence < UNSURE ? 'word unsure' : 'word';
  button.textContent = word.text;
  const cells = attention && word.map ? [...atob(word.map)].map(character => character.charCodeAt(0)) : [];
  const hasMap = cells.some(cell => cell > 0); // nothing supports a word whose map is zero
  if (hasMap) button.dataset.map = relativeMap(cells, attention);
  const sureness = word.confidence === null ? 'given as the beginning' : `confidence ${percent(word.confidence)}`;
  const description = hasMap ? `looked ${describePosition(cells, attention)}; ${sureness}` : sureness;
  button.dataset.description = description;
  button.setAttribute('aria-description', description);
  return button;
}

// Where most of a map lies, by the ninths of the picture.
function describePosition(cells, { width, height }) {
  const sums = Array(9).fill(0);
  cells.forEach((value, index) => {
    const [row, column] = [Math.floor(index / width), index % width];
    sums[3 * Math.floor((row + 0.5) * 3 / height) + Math.floor((column + 0.5) * 3 / width)] += value;
  });
  const most = Math.max(...sums);
  const place = PLACES.flat()[sums.indexOf(most)];
  // a ninth stands out if it has at least twice its even share
  return `${most > 2 / 9 * sums.reduce((sum, value) => sum + value) ? 'mostly' : 'all over, most'} ${place}`;
}

// The same colours as in heatmap.js: one scale for all maps, so that an even map looks even.
function relativeMap(cells, { width, height, peak }) {
  const strengths = cells.map(value => {
    const ratio = Math.min(MAX_RATIO, Math.max(1 / MAX_RATIO, value / 255 * peak));
    return Math.round(255 * (0.5 + 0.5 * Math.log(ratio) / Math.log(MAX_RATIO)));
  });
  return `${width},${height},${btoa(String.fromCharCode(...strengths))}`;
}
