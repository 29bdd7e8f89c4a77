// The page: takes chosen, dropped and pasted pictures, and shows each with its caption.

const status = document.getElementById('status');
const bar = document.getElementById('bar');
const chooser = document.getElementById('chooser');
const results = document.getElementById('results');
const beams = document.getElementById('beams');
const worker = new Worker('worker.js', { type: 'module' });
const waiting = new Map();
let count = 0;

worker.onmessage = ({ data }) => {
  if (data.id !== undefined) return showResult(data);
  if (data.error) {
    status.textContent = `The model could not be opened: ${data.error}`;
    bar.hidden = true;
  } else if (data.ready) {
    status.textContent = 'Ready.';
    bar.hidden = true;
    beams.value = data.ready.decode.beams;
    document.body.dataset.state = 'ready';
  } else {
    const megabytes = bytes => (bytes / 1e6).toFixed(1);
    status.textContent = `Loading the model: ${megabytes(data.done)} of ${megabytes(data.total)} MB`;
    bar.value = data.done / data.total;
  }
};
worker.onerror = event => {
  status.textContent = `The captioner could not be started: ${event.message || 'this browser lacks module workers'}`;
  bar.hidden = true;
};

function addPicture(file) {
  const id = count++;
  const figure = document.createElement('figure');
  const picture = document.createElement('img');
  const text = document.createElement('figcaption');
  const address = URL.createObjectURL(file);
  picture.src = address;
  picture.alt = '';
  picture.loading = 'lazy';
  picture.onload = picture.onerror = () => URL.revokeObjectURL(address);
  text.textContent = 'Waiting …';
  figure.append(picture, text);
  results.prepend(figure);
  waiting.set(id, { picture, text, name: file.name });
  worker.postMessage({ id, file, options: { beams: Math.max(1, Math.round(beams.valueAsNumber) || 1) } });
}

function showResult({ id, caption, seconds, error }) {
  const { picture, text, name } = waiting.get(id);
  waiting.delete(id);
  if (error) {
    text.textContent = `${name}: ${error}`;
    text.className = 'error';
    picture.remove();
    return;
  }
  text.textContent = caption.text;
  picture.alt = caption.text;
  const note = document.createElement('small');
  note.textContent = `confidence ${(100 * caption.confidence).toFixed(0)} %, ${seconds.toFixed(1)} s`;
  text.append(note);
}

chooser.onchange = () => {
  for (const file of chooser.files) addPicture(file);
  chooser.value = '';
};
document.addEventListener('dragover', event => event.preventDefault());
document.addEventListener('drop', event => {
  event.preventDefault();
  for (const file of event.dataTransfer.files) addPicture(file);
});
document.addEventListener('paste', event => {
  for (const file of event.clipboardData.files) addPicture(file);
});
