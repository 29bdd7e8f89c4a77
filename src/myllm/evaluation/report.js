// Sorts the gallery, and shows over a picture where the captioner looked for a word of the caption.
'use strict';

const gallery = document.getElementById('gallery');
const orders = document.getElementById('orders');

function sort(pressed) {
  const key = pressed.dataset.order;
  gallery.append(...[...gallery.children].sort((a, b) => a.dataset[key] - b.dataset[key]));
  for (const button of orders.querySelectorAll('button')) button.setAttribute('aria-pressed', button === pressed);
}

for (const button of orders.querySelectorAll('button')) button.addEventListener('click', () => sort(button));
orders.hidden = false;

// Red, green, blue and opacity from the least to the most: dark blue, orange, yellow. Lightness rises steadily, so that
// the scale can be read with any colour vision.
const RAMP = [[16, 20, 60, 180], [213, 94, 0, 120], [255, 236, 110, 140]];

function colour(value) {
  const position = value / 255 * (RAMP.length - 1);
  const below = Math.min(RAMP.length - 2, Math.floor(position));
  return RAMP[below].map((low, channel) => low + (position - below) * (RAMP[below + 1][channel] - low));
}

function paint(canvas, image, map) {
  const [width, height, bytes] = map.split(',');
  const small = document.createElement('canvas');
  small.width = width;
  small.height = height;
  const pixels = new ImageData(Number(width), Number(height));
  [...atob(bytes)].forEach((byte, index) => pixels.data.set(colour(byte.charCodeAt(0)), 4 * index));
  small.getContext('2d').putImageData(pixels, 0, 0);
  canvas.width = image.width * 2;
  canvas.height = image.height * 2;
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function asButton(span) {
  const word = document.createElement('button');
  word.type = 'button';
  word.className = 'word';
  word.textContent = span.textContent;
  Object.assign(word.dataset, span.dataset);
  word.setAttribute('aria-pressed', 'false');
  span.replaceWith(word);
  return word;
}

// The Tab key stops once per caption; the arrow keys move from word to word (a "roving tabindex").
function addArrowKeys(caption) {
  const words = [...caption.querySelectorAll('.word')];
  if (!words.length) return;
  caption.setAttribute('role', 'toolbar');
  caption.setAttribute('aria-label', 'Where the captioner looked for each word');
  words.forEach((word, index) => { word.tabIndex = index ? -1 : 0; });
  caption.addEventListener('keydown', event => {
    const index = words.indexOf(event.target);
    const step = getComputedStyle(caption).direction === 'rtl' ? -1 : 1;
    const next = { ArrowRight: index + step, ArrowLeft: index - step, Home: 0, End: words.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (words[next]) words[next].focus();
  });
  caption.addEventListener('focusin', event => {
    for (const word of words) word.tabIndex = word === event.target ? 0 : -1;
  });
}

// A word shows its map while it is pointed at or has the focus; pressing it keeps the map until it is pressed again.
function addWordMaps(item) {
  const image = item.querySelector('.picture img');
  if (!image || !item.querySelector('.word')) return;
  const canvas = document.createElement('canvas');
  const description = document.createElement('p');
  description.className = 'description faint';
  description.setAttribute('role', 'status');
  canvas.hidden = true;
  image.after(canvas);
  // below the words, because above them it would push them away from the pointer
  item.querySelector('.references').before(description);
  const words = [...item.querySelectorAll('.word')].map(asButton);
  item.querySelectorAll('.caption').forEach(addArrowKeys);
  let pressed = null;

  const show = current => {
    for (const word of words) word.classList.toggle('shown', word === current);
    description.textContent = current ? current.dataset.description : '';
    canvas.hidden = !current;
    if (current) paint(canvas, image, current.dataset.map);
  };
  const press = word => {
    pressed = word === pressed ? null : word;
    for (const other of words) other.setAttribute('aria-pressed', other === pressed);
    show(pressed);
  };
  for (const word of words) {
    word.addEventListener('click', () => press(word));
    word.addEventListener('focus', () => show(word));
    word.addEventListener('blur', () => show(pressed));
    word.addEventListener('pointerenter', event => { if (event.pointerType !== 'touch') show(word); });
    word.addEventListener('pointerleave', event => { if (event.pointerType !== 'touch') show(pressed); });
    word.addEventListener('keydown', event => { if (event.key === 'Escape') press(pressed); });
  }
}

for (const item of gallery.children) addWordMaps(item);
