// The page: takes chosen, dropped, pasted and photographed pictures, and shows a card for each. What captions them is
// `engine.js`: the server, or this browser.

import { Card, markSmall } from './card.js';
import { readFiles } from './dropped.js';
import * as engine from './engine.js';
import { clearHistory, readHistory, removeEntry, saveEntry } from './history.js';
import { readOptions, setUpOptions } from './options.js';

const byId = id => document.getElementById(id);
const results = byId('results');
const cards = new Map(); // element -> Card
const jobs = [];
let running = 0;
let opened; // resolves to the engine's answer about its models

const show = text => { byId('status').textContent = text; };
const announce = text => { byId('announcement').textContent = text; }; // screen readers read it aloud
const say = text => [show, announce].forEach(output => output(text));
const needsKey = error => ['no_key', 'bad_key'].includes(error.code);
const megabytes = bytes => (bytes / 1e6).toFixed(1);

async function open() {
  document.body.dataset.state = 'loading';
  show('Loading …');
  try {
    const models = await engine.open((done, total) => {
      show(`Loading the captioner: ${megabytes(done)} of ${megabytes(total)} MB`);
      byId('bar').hidden = false;
      byId('bar').value = done / total;
    });
    setUpOptions(models, engine.OPTIONS);
    document.body.dataset.state = 'ready';
    for (const id of ['key', 'retry']) hide(byId(id), byId('chooser'));
    say('Ready.');
    for (const card of cards.values()) if (card.isRefused) again(card);
    return models;
  } catch (error) {
    document.body.dataset.state = error.code === 'no_key' ? 'locked' : 'failed';
    if (needsKey(error)) {
      byId('key').hidden = false;
      hide(byId('retry'), byId('key-field'));
    } else {
      byId('retry').hidden = false;
    }
    say(error.message);
    throw error;
  } finally {
    byId('bar').hidden = true;
  }
}

// Hides a part of the page. If it has the focus, `next` takes it.
function hide(part, next) {
  if (part.contains(document.activeElement)) next.focus();
  part.hidden = true;
}

function addFiles(files) {
  // reversed, because each card is put on top
  const added = [...files].reverse().map(file => {
    return addCard({ name: file.name || 'picture', address: URL.createObjectURL(file), file });
  });
  jobs.push(...added.reverse().map(card => () => captionPicture(card)));
  runJobs();
}

function addCard(picture) {
  const card = new Card(picture, { announce, again, remove, locate: engine.findMaps && locate });
  card.id = picture.id ?? `${Date.now()}-${Math.random()}`;
  card.stop = new AbortController();
  cards.set(card.element, card);
  results.prepend(card.element);
  showSections();
  return card;
}

// At most PARALLEL at once, in order.
async function runJobs() {
  if (running === engine.PARALLEL || !jobs.length) return;
  running++;
  const job = jobs.shift();
  runJobs();
  await job();
  running--;
  runJobs();
}

async function captionPicture(card) {
  const { picture: { file, name }, stop: { signal } } = card;
  if (signal.aborted) return;
  try {
    const models = await opened;
    checkFile(file, models.limits);
    const chosen = readOptions(models.data);
    card.setState('working');
    showProgress();
    let texts = 0;
    const onText = text => {
      texts++;
      card.setState('working', text);
    };
    const answer = await engine.caption(file, {
      ...chosen, signal, onText,
      onWait: seconds => card.setState('waiting', `The server is busy. Trying again in ${seconds} s …`),
    });
    if (signal.aborted) return;
    card.caption.classList.toggle('appearing', texts < 2); // the words came all at once
    card.showAnswer(answer);
    announce(`${name}: ${answer.caption}`);
    await keep(card);
  } catch (error) {
    if (error.name === 'AbortError') return;
    if (needsKey(error) && document.body.dataset.state === 'ready') reopen();
    card.isRefused = document.body.dataset.state !== 'ready'; // `open` captions it again
    if (needsKey(error)) {
      card.setState('waiting', 'Waiting for the key …');
    } else {
      card.showError(error.message);
      announce(`${name}: ${error.message}`);
    }
  } finally {
    showProgress();
  }
}

function showProgress() {
  if (document.body.dataset.state !== 'ready') return; // the missing part is shown instead
  const states = [...cards.keys()].map(element => element.dataset.state);
  const count = state => states.filter(other => other === state).length;
  const [open, failed, done] = [count('waiting') + count('working'), count('failed'), count('done')];
  if (open) show(`Captioning: ${done + failed} of ${states.length} done`);
  else show(`${done} captioned${failed ? `, ${failed} failed` : ''}`);
}

function checkFile(file, { bytes = Infinity }) {
  if (file.type && !file.type.startsWith('image/')) throw new Error('not a picture');
  if (file.size > bytes) {
    throw new Error(`the file has ${megabytes(file.size)} MB; the server takes at most ${megabytes(bytes)} MB`);
  }
}

function again(card) {
  if (document.body.dataset.state === 'failed') reopen();
  card.isRefused = false;
  card.setState('waiting');
  jobs.push(() => captionPicture(card));
  runJobs();
}

// Resolves to the card's answer with heat maps.
function locate(card, onProgress) {
  return new Promise((resolve, reject) => {
    jobs.push(() => engine.findMaps(card.picture.file, card.answer, onProgress).then(resolve, reject));
    runJobs();
  }).then(answer => {
    card.answer = answer;
    keep(card);
    return answer;
  });
}

function remove(card) {
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  card.stop.abort();
  card.element.remove();
  cards.delete(card.element);
  if (card.picture.file) URL.revokeObjectURL(card.picture.address);
  showSections();
  (next?.querySelector('.remove') ?? byId('chooser')).focus();
}

async function keep(card) {
  const { tokens, ...answer } = card.answer;
  saveEntry({ id: card.id, time: Date.now(), name: card.picture.name, thumbnail: await card.thumbnail(), answer });
  showSections();
}

function showSections() {
  const earlier = readHistory();
  byId('captions').hidden = !cards.size;
  document.body.classList.toggle('used', cards.size > 0);
  byId('history').hidden = !earlier.length;
  byId('history').querySelector('summary').textContent = `History (${earlier.length})`;
  if (byId('history').open) byId('earlier').replaceChildren(...earlier.map(historyItem));
}

function historyItem(entry) {
  const item = byId('entry').content.firstElementChild.cloneNode(true);
  const [openButton, deleteButton] = item.querySelectorAll('button');
  const image = item.querySelector('img');
  image.onload = () => markSmall(image);
  if (entry.thumbnail) image.src = entry.thumbnail;
  else image.remove();
  item.querySelector('span').textContent = entry.answer.caption;
  openButton.title = new Date(entry.time).toLocaleString();
  openButton.onclick = () => openEntry(entry);
  deleteButton.setAttribute('aria-label', `Delete ${entry.name} from the history`);
  deleteButton.onclick = () => deleteItem(entry, item);
  return item;
}

function openEntry({ id, name, thumbnail, answer }) {
  let card = [...cards.values()].find(shown => shown.id === id);
  if (!card) {
    card = addCard({ id, name, address: thumbnail, file: null });
    card.showAnswer(answer);
  }
  card.element.scrollIntoView({ block: 'nearest' });
  card.focus();
}

function deleteItem({ id, name }, item) {
  const index = [...byId('earlier').children].indexOf(item);
  removeEntry(id);
  showSections();
  announce(`Deleted ${name} from the history.`);
  const buttons = byId('earlier').querySelectorAll('.delete');
  (buttons[Math.min(index, buttons.length - 1)] ?? byId('chooser')).focus();
}

function saveAll() {
  const answered = [...results.children].map(element => cards.get(element)).filter(card => card.answer);
  const lines = answered.map(card => `${JSON.stringify(card.asJson())}\n`);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(lines, { type: 'application/jsonl' }));
  link.download = 'captions.jsonl';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function takeFiles(transfer) {
  try {
    addFiles(await readFiles(transfer));
  } catch (error) {
    say(error.message);
  }
}

for (const input of document.querySelectorAll('#intake input')) {
  input.onchange = () => {
    addFiles(input.files);
    input.value = '';
  };
}
const hasFiles = event => event.dataTransfer.types.includes('Files');
document.addEventListener('dragover', event => {
  event.preventDefault();
  document.body.classList.toggle('dropping', hasFiles(event));
});
document.addEventListener('dragleave', event => {
  if (!event.relatedTarget) document.body.classList.remove('dropping');
});
document.addEventListener('drop', event => {
  event.preventDefault();
  document.body.classList.remove('dropping');
  takeFiles(event.dataTransfer);
});
document.addEventListener('paste', event => {
  if (!event.target.closest?.('input')) takeFiles(event.clipboardData);
});
byId('save').onclick = saveAll;
byId('history').ontoggle = showSections;
byId('clear').onclick = () => {
  clearHistory();
  showSections();
  say('The history is empty.');
  byId('chooser').focus();
};
byId('key').onsubmit = event => {
  event.preventDefault();
  engine.useKey(byId('key-field').value);
  reopen();
};
byId('retry').onclick = reopen;

function reopen() {
  opened = open();
  opened.catch(() => {}); // `open` has shown the error
}

reopen();
byId('privacy').textContent = engine.PRIVACY;
showSections();
byId('history').open = readHistory().length > 0;
