// Sorts the gallery, and shows over a picture where the captioner looked for a word of the caption.

const gallery = document.getElementById('gallery');
const orders = document.getElementById('orders');
const all = document.getElementById('all');
const hint = document.getElementById('hint');
const wordStatus = document.getElementById('status');

function sort(pressed) {
  const key = pressed.dataset.order;
  gallery.append(...[...gallery.children].sort((a, b) => a.dataset[key] - b.dataset[key]));
  for (const button of orders.querySelectorAll('button')) button.setAttribute('aria-pressed', button === pressed);
}

function showAll(isAll) {
  gallery.classList.toggle('short', !isAll);
  all.setAttribute('aria-expanded', isAll);
  all.textContent = isAll ? 'Show fewer pictures' : `Show all ${gallery.children.length} pictures with all references`;
}

for (const button of orders.querySelectorAll('button')) button.addEventListener('click', () => sort(button));
all.addEventListener('click', () => showAll(gallery.classList.contains('short')));
showAll(false);
orders.hidden = all.hidden = false;

function asButton(span) {
  const word = document.createElement('button');
  word.type = 'button';
  word.className = span.className;
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
  canvas.hidden = true;
  image.after(canvas);
  const words = [...item.querySelectorAll('.word')].map(asButton);
  item.querySelectorAll('.caption').forEach(addArrowKeys);
  let pressed = null;

  const show = current => {
    for (const word of words) word.classList.toggle('shown', word === current);
    wordStatus.textContent = current ? current.dataset.description : '';
    hint.hidden = Boolean(current);
    canvas.hidden = !current;
    if (current) paintHeatMap(canvas, image, current.dataset.map);
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
