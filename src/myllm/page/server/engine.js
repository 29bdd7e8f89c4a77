// The captioner of the server that this page came from. `browser/engine.js` has the same functions.

export const PRIVACY = 'Pictures go to this server only, which does not keep them.';
export const PARALLEL = 4; // pictures that are sent at once
export const OPTIONS = [
  'beams', 'max_new_tokens', 'do_sample', 'temperature', 'num_return_sequences', 'prefix', 'force_words', 'bad_words',
];

const MAX_WAITS = 20; // for a server that is busy
let apiKey = '';

// Resolves to the answer of `GET /v1/models`.
export async function open() {
  return (await request('v1/models')).json();
}

// Resolves to the answer of `POST /v1/caption`. onText(text): called with the text so far. onWait(seconds): called when
// the server is busy, before each pause.
export async function caption(file, { model, options, onText, onWait, signal }) {
  const form = new FormData();
  form.append('image', file, file.name || 'picture');
  form.append('stream', 'true');
  if (model.id) form.append('model', model.id);
  if (model.has_attention) form.append('attention', 'true');
  for (const [name, value] of Object.entries(options)) {
    for (const item of [value].flat()) form.append(name, item);
  }
  for (let waits = 0; ; waits++) {
    try {
      const response = await request('v1/caption', { method: 'POST', body: form, signal });
      return await readAnswer(response, onText);
    } catch (error) {
      if (error.code !== 'queue_full' || waits === MAX_WAITS) throw error;
      onWait(error.seconds);
      await pause(error.seconds, signal);
    }
  }
}

// The key that the server asks for. It is not stored anywhere.
export function useKey(key) {
  apiKey = key;
}

async function request(address, options = {}) {
  const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    throw connectionError(error);
  }
  if (!response.ok) throw await answeredError(response);
  return response;
}

// Server-sent events: `text` continues the caption, `caption` is the answer, `error` ends the stream.
async function readAnswer(response, onText) {
  let [text, pending] = ['', ''];
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(error => { throw connectionError(error); });
    if (done) throw new Error('The server broke the answer off. Try again.');
    const events = (pending + value.replaceAll('\r', '')).split('\n\n');
    pending = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split('\n').map(line => line.split(/: ?(.*)/s, 2)));
      if (!fields.data) continue; // a comment that keeps the connection open
      const data = JSON.parse(fields.data);
      if (fields.event === 'caption') return data;
      if (fields.event === 'error') throw describedError(data);
      if (fields.event === 'text') onText(text += data.text);
    }
  }
}

async function answeredError(response) {
  const data = await response.json().catch(() => ({}));
  const error = describedError(data, `The server answered ${response.status}.`);
  error.seconds = Number(response.headers.get('Retry-After')) || 1;
  if (error.code === 'bad_key') {
    if (!apiKey) error.code = 'no_key';
    error.message = apiKey ? 'The key is wrong. Type it again.' : 'This server needs a key. Type it below.';
  }
  return error;
}

function describedError({ error }, otherwise = 'The server failed.') {
  return Object.assign(new Error(error?.message ?? otherwise), { code: error?.code });
}

function connectionError(error) {
  return error.name === 'AbortError' ? error : new Error('The server does not answer. Is it running? Try again.');
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
