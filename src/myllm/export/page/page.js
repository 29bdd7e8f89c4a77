// What a person sees: pictures chosen, dropped or pasted, each with its caption.

const status = document.getElementById('status');
const bar = document.getElementById('bar');
const chooser = document.getElementById('chooser');
const results = document.getElementById('results');
const beams = document.getElementById('beams');
const worker = new Worker('worker.js', { type: 'module' });
const waiting = new Map();
let count = 0;

worker.onmessage = ({ data }) => {
  if (data.number !== undefined) return finished(data);
  if (data.error) {
    status.textContent = `The model could not be opened: ${data.error}`;
    bar.hidden = true;
  } else if (data.ready) {
    status.textContent = 'Ready. Pictures stay on this device.';
    bar.hidden = true;
    beams.value = data.ready.decode.beams;
    document.body.dataset.state = 'ready';
  } else {
    const megabytes = bytes => (bytes / 1e6).toFixed(1);
    status.textContent = `Reading the model: ${megabytes(data.done)} of ${megabytes(data.total)} MB`;
    bar.value = data.done / data.total;
  }
};
worker.onerror = event => {
  status.textContent = `The captioner could not be started: ${event.message || 'this browser lacks module workers'}`;
  bar.hidden = true;
};

function caption(file) {
  const number = count++;
  const figure = document.createElement('figure');
  const picture = document.createElement('img');
  const text = document.createElement('figcaption');
  const address = URL.createObjectURL(file);
  picture.src = address;
  picture.alt = '';
  picture.onload = picture.onerror = () => URL.revokeObjectURL(address);
  text.textContent = 'Looking …';
  figure.append(picture, text);
  results.prepend(figure);
  waiting.set(number, { picture, text, name: file.name });
  worker.postMessage({ number, file, options: { beams: Math.max(1, Math.round(beams.valueAsNumber) || 1) } });
}

function finished({ number, caption, seconds, error }) {
  const { picture, text, name } = waiting.get(number);
  waiting.delete(number);
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
  for (const file of chooser.files) caption(file);
  chooser.value = '';
};
document.addEventListener('dragover', event => event.preventDefault());
document.addEventListener('drop', event => {
  event.preventDefault();
  for (const file of event.dataTransfer.files) caption(file);
});
document.addEventListener('paste', event => {
  for (const file of event.clipboardData.files) caption(file);
});
