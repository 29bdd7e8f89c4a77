// The captioner in this browser. `server/engine.js` has the same functions.

export const PRIVACY = 'The captioner runs in this browser. No picture leaves this device.';
export const PARALLEL = 1; // so that only one picture is decoded in memory
// The decoding options of the page's form that `search.js` knows
export const OPTIONS = ['beams', 'max_new_tokens'];

let worker;
const calls = new Map(); // id -> {resolve, reject, onUpdate}
let count = 0;

// Opens the model. onProgress(done, total): bytes that were read. Resolves to what `GET /v1/models` of `myllm serve`
// answers, as far as the page needs it.
export function open(onProgress) {
  worker?.terminate();
  worker = new Worker('worker.js', { type: 'module' });
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data.id !== undefined) settle(data);
      else if (data.error) reject(new Error(`The model could not be opened: ${data.error}`));
      else if (data.ready) resolve({ data: [describe(data.ready)], limits: { captions: 20 } });
      else onProgress(data.done, data.total);
    };
    worker.onerror = event => {
      reject(new Error(`The captioner could not be started: ${event.message || 'this browser lacks module workers'}`));
    };
  });
}

// Resolves to the answer of `POST /v1/caption`. onText(text): called with the text so far.
export function caption(file, { options, onText }) {
  return call({ file, options }, onText);
}

// Resolves to the answer with heat maps. onProgress(share): called with 0..1.
export async function findMaps(file, answer, onProgress) {
  const { attention, maps } = await call({ file, answer }, onProgress);
  return { ...answer, attention, words: answer.words.map((word, index) => ({ ...word, map: maps[index] })) };
}

function describe({ decode, n_positions }) {
  return { id: '', decode, max_new_tokens: n_positions, has_attention: false };
}

function call(message, onUpdate) {
  const id = count++;
  return new Promise((resolve, reject) => {
    calls.set(id, { resolve, reject, onUpdate });
    worker.postMessage({ id, ...message });
  });
}

function settle({ id, update, result, error }) {
  const { resolve, reject, onUpdate } = calls.get(id);
  if (update !== undefined) return onUpdate(update);
  calls.delete(id);
  if (error) reject(new Error(error));
  else resolve(result);
}
