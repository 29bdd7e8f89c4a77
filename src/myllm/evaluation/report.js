// Sorts the gallery, and shows over a picture what was looked at for a word of its caption.
'use strict';

const gallery = document.getElementById('gallery');
const orders = document.getElementById('orders');

function sort(chosen) {
  const key = chosen.dataset.order;
  gallery.append(...[...gallery.children].sort((a, b) => a.dataset[key] - b.dataset[key]));
  for (const one of orders.querySelectorAll('button')) one.setAttribute('aria-pressed', one === chosen);
}

for (const button of orders.querySelectorAll('button')) button.addEventListener('click', () => sort(button));
orders.hidden = false;

// from what was not looked at to what was most: dark blue, vermilion, yellow; ever lighter, so that hue need not be seen
const RAMP = [[16, 20, 60, 180], [213, 94, 0, 120], [255, 236, 110, 140]];

function colour(value) {
  const place = value / 255 * (RAMP.length - 1);
  const below = Math.min(RAMP.length - 2, Math.floor(place));
  return RAMP[below].map((low, at) => low + (place - below) * (RAMP[below + 1][at] - low));
}

function paint(canvas, image, map) {
  const [width, height, bytes] = map.split(',');
  const small = document.createElement('canvas');
  small.width = width;
  small.height = height;
  const pixels = new ImageData(Number(width), Number(height));
  [...atob(bytes)].forEach((byte, at) => pixels.data.set(colour(byte.charCodeAt(0)), 4 * at));
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

// One stop of the Tab key a caption; arrows go from word to word.
function rove(caption) {
  const words = [...caption.querySelectorAll('.word')];
  if (!words.length) return;
  caption.setAttribute('role', 'toolbar');
  caption.setAttribute('aria-label', 'What was looked at for each word');
  words.forEach((word, at) => { word.tabIndex = at ? -1 : 0; });
  caption.addEventListener('keydown', event => {
    const at = words.indexOf(event.target);
    const onwards = getComputedStyle(caption).direction === 'rtl' ? -1 : 1;
    const to = { ArrowRight: at + onwards, ArrowLeft: at - onwards, Home: 0, End: words.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (words[to]) words[to].focus();
  });
  caption.addEventListener('focusin', event => {
    for (const word of words) word.tabIndex = word === event.target ? 0 : -1;
  });
}

// Each word can be pointed at, reached by keys, or pressed, which keeps its map until it is pressed again.
function upgrade(item) {
  const image = item.querySelector('.picture img');
  if (!image || !item.querySelector('.word')) return;
  const canvas = document.createElement('canvas');
  const where = document.createElement('p');
  where.className = 'where faint';
  where.setAttribute('role', 'status');
  canvas.hidden = true;
  image.after(canvas);
  // below the words, which would otherwise slip away from under the pointer
  item.querySelector('.references').before(where);
  const words = [...item.querySelectorAll('.word')].map(asButton);
  item.querySelectorAll('.caption').forEach(rove);
  let pressed = null;

  const show = shown => {
    for (const word of words) word.classList.toggle('shown', word === shown);
    where.textContent = shown ? shown.dataset.told : '';
    canvas.hidden = !shown;
    if (shown) paint(canvas, image, shown.dataset.map);
  };
  const press = word => {
    pressed = word === pressed ? null : word;
    for (const one of words) one.setAttribute('aria-pressed', one === pressed);
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

for (const item of gallery.children) upgrade(item);
