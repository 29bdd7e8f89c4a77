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
  span.replaceWith(word);
  return word;
}

function addWordMaps(item) {
  const image = item.querySelector('.picture img');
  if (!image || !item.querySelector('.word')) return;
  const canvas = document.createElement('canvas');
  canvas.hidden = true;
  image.after(canvas);
  const words = [...item.querySelectorAll('.word')].map(asButton);
  for (const caption of item.querySelectorAll('.caption')) addArrowKeys(caption, 'Where the captioner looked for each word');
  showWhenPointedAt(words, current => {
    wordStatus.textContent = current ? current.dataset.description : '';
    hint.hidden = Boolean(current);
    canvas.hidden = !current;
    if (current) paintHeatMap(canvas, image, current.dataset.map);
  });
}

for (const item of gallery.children) addWordMaps(item);
