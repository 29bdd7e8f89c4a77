// A caption's words as buttons: each shows its confidence, and over the picture where the captioner looked for it.
// `paintHeatMap` is a function of heatmap.js.

const UNSURE = 0.5; // words with less confidence are marked
const MAX_RATIO = 8; // of heatmap.js: times the even share at which a map has its strongest colour
const PLACES = [
  ['at the upper left', 'at the top', 'at the upper right'],
  ['on the left', 'in the middle', 'on the right'],
  ['at the lower left', 'at the bottom', 'at the lower right'],
];

export const percent = share => `${Math.round(100 * share)}\u00a0%`;

// parts: elements of a card: {caption, description, image, canvas}; answer: of `POST /v1/caption`.
export function showWords({ caption, description, image, canvas }, answer) {
  const words = fillCaption(caption, answer);
  let pressed = null;

  const show = current => {
    for (const { button } of words) button.classList.toggle('shown', button === current?.button);
    description.textContent = current?.description ?? '';
    canvas.hidden = !current?.map;
    if (current?.map) paintHeatMap(canvas, image, current.map);
  };
  const press = word => {
    pressed = word === pressed ? null : word;
    for (const other of words) other.button.setAttribute('aria-pressed', other === pressed);
    show(pressed);
  };
  for (const word of words) {
    const { button } = word;
    button.addEventListener('click', () => press(word));
    button.addEventListener('focus', () => show(word));
    button.addEventListener('blur', () => show(pressed));
    button.addEventListener('pointerenter', event => { if (event.pointerType !== 'touch') show(word); });
    button.addEventListener('pointerleave', event => { if (event.pointerType !== 'touch') show(pressed); });
    button.addEventListener('keydown', event => { if (event.key === 'Escape') press(pressed); });
  }
  if (words.length) addArrowKeys(caption, words.map(({ button }) => button));
  show(null);
}

// Returns {button, description, map} for each word.
function fillCaption(caption, { caption: text, words, attention }) {
  const parts = [];
  const result = [];
  let end = 0;
  for (const word of words) {
    const start = text.indexOf(word.text, end);
    if (start < 0) continue;
    if (!/[\p{L}\p{N}]/u.test(word.text)) { // punctuation, which stays on the line of its word
      const unbroken = document.createElement('span');
      unbroken.className = 'unbroken';
      unbroken.append(...parts.splice(-1), text.slice(end, start + word.text.length));
      parts.push(unbroken);
      end = start + word.text.length;
      continue;
    }
    const button = document.createElement('button');
    button.type = 'button';
    button.className = word.confidence !== null && word.confidence < UNSURE ? 'word unsure' : 'word';
    button.textContent = word.text;
    button.setAttribute('aria-pressed', 'false');
    button.style.setProperty('--index', result.length); // for the style sheet
    parts.push(text.slice(end, start), button);
    end = start + word.text.length;
    const map = word.map && attention ? relativeMap(word.map, attention) : '';
    const description = describeWord(word, attention);
    button.setAttribute('aria-description', description);
    result.push({ button, map, description });
  }
  caption.replaceChildren(...parts, text.slice(end));
  return result;
}

function describeWord({ confidence, map }, attention) {
  const sureness = confidence === null ? 'given as the beginning' : `confidence ${percent(confidence)}`;
  return map && attention ? `looked ${describePosition(bytesOf(map), attention)}; ${sureness}` : sureness;
}

// Where most of a map lies, by the ninths of the picture.
function describePosition(bytes, { width, height }) {
  const sums = Array(9).fill(0);
  bytes.forEach((byte, cell) => {
    const [row, column] = [Math.floor(cell / width), cell % width];
    sums[3 * Math.floor((row + 0.5) * 3 / height) + Math.floor((column + 0.5) * 3 / width)] += byte;
  });
  const most = Math.max(...sums);
  const place = PLACES.flat()[sums.indexOf(most)];
  // a ninth stands out if it has at least twice its even share
  return `${most > 2 / 9 * sums.reduce((sum, value) => sum + value) ? 'mostly' : 'all over, most'} ${place}`;
}

// As heatmap.js paints it: the same scale for all maps, so that an even map looks even.
function relativeMap(map, { width, height, peak }) {
  const strengths = bytesOf(map).map(byte => {
    const ratio = Math.min(MAX_RATIO, Math.max(1 / MAX_RATIO, byte / 255 * peak));
    return Math.round(255 * (0.5 + 0.5 * Math.log(ratio) / Math.log(MAX_RATIO)));
  });
  return `${width},${height},${btoa(String.fromCharCode(...strengths))}`;
}

function bytesOf(base64) {
  return [...atob(base64)].map(character => character.charCodeAt(0));
}

// The Tab key stops once per caption; the arrow keys move from word to word (a "roving tabindex").
function addArrowKeys(caption, buttons) {
  caption.setAttribute('role', 'toolbar');
  caption.setAttribute('aria-label', 'Words of the caption');
  buttons.forEach((button, index) => {
    button.tabIndex = index ? -1 : 0;
    button.addEventListener('focus', () => {
      for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
    });
  });
  caption.onkeydown = event => {
    const index = buttons.indexOf(event.target);
    const step = getComputedStyle(caption).direction === 'rtl' ? -1 : 1;
    const next = { ArrowRight: index + step, ArrowLeft: index - step, Home: 0, End: buttons.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    buttons[next]?.focus();
  };
}
