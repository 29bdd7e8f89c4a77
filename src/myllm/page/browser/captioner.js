// A captioner that `myllm export` wrote, on ONNX Runtime Web: pixels in, captions and heat maps out.

import * as ort from './runtime/ort.wasm.bundle.min.mjs';
import { captionConfidence, captionWords, meanLogprob } from './confidence.js';
import { occlusionMaps, wordMaps } from './occlusion.js';
import { preprocess, visibleWindow } from './pixels.js';
import { logSoftmax, runSearch } from './search.js';

// what str.strip removes in Python
const OUTER_BLANKS = /^(?:[^\S\ufeff]|[\x1c-\x1f\x85])+|(?:[^\S\ufeff]|[\x1c-\x1f\x85])+$/g;

export class Captioner {
  // folder: address of the export. progress(done, total): bytes of the model that were read.
  static async load(folder, progress = () => {}) {
    ort.env.wasm.wasmPaths = { wasm: new URL('./runtime/ort-wasm-simd-threaded.wasm', import.meta.url).href };
    // threads need shared memory, which a browser grants only to isolated pages
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
    ort.env.logLevel = 'error';
    const files = ['config.json', 'tokenizer.json'];
    const [config, tokenizer] = await Promise.all(files.map(name => readJson(folder + name)));
    const { dtype } = config['transformers.js_config'];
    const suffix = dtype === 'fp32' ? '' : `_${dtype}`;
    const names = ['encoder_model', 'decoder_model_merged'].map(name => `${folder}onnx/${name}${suffix}.onnx`);
    const done = [0, 0];
    const totals = [0, 0];
    const sessions = [];
    for (const [index, name] of names.entries()) {
      const bytes = await download(name, (read, total) => {
        done[index] = read;
        totals[index] = total;
        progress(done[0] + done[1], totals[0] + totals[1]);
      });
      // dequantizes weights once: in a browser, multiplying with quantized ones takes ten times as long
      const extra = { session: { disable_quant_qdq: '1' } };
      sessions.push(await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'], extra }));
    }
    return new Captioner(config, tokenizer, ...sessions);
  }

  constructor(config, tokenizer, encoder, decoder) {
    this.config = config;
    this.settings = config.myllm;
    this.bytes = tokenBytes(tokenizer);
    const layers = Array.from({ length: config.decoder.n_layer }, (_, layer) => layer);
    this.cacheParts = layers.flatMap(layer => [`${layer}.key`, `${layer}.value`]);
    this.special = new Set(tokenizer.added_tokens.map(({ id }) => id));
    this.encoder = encoder;
    this.decoder = decoder;
  }

  // image: {width, height, data} of RGB bytes. onText(text): called with the text so far, unless there are beams.
  // Resolves to the answer of `POST /v1/caption` of `myllm serve`, and the caption's tokens.
  async caption(image, options = {}, onText = () => {}) {
    const { decode, given: [end, ...prefix], n_positions, calibration } = this.settings;
    const config = { ...decode, ...options };
    config.max_new_tokens = Math.min(config.max_new_tokens, n_positions - prefix.length);
    config.min_new_tokens = Math.min(config.min_new_tokens, config.max_new_tokens);
    const step = this.stepper(await this.encode(preprocess(image, this.settings.preprocess), 1));
    const onTokens = tokens => onText(this.text(tokens));
    const hypotheses = await runSearch({ step, end, prefix, config, onTokens });
    const texts = hypotheses.map(({ tokens }) => this.text(tokens));
    const { tokens, logprobs, endedBy } = hypotheses[0];
    const caption = { pieces: this.pieces(tokens), logprobs, prefixLength: prefix.length };
    return {
      caption: texts[0], score: meanLogprob(logprobs), confidence: captionConfidence(caption, calibration),
      alternatives: texts.slice(1), ended_by: endedBy, words: captionWords(caption, calibration), tokens,
    };
  }

  // Where the captioner looked for each word of `answer`, which is what `caption` resolved to for this image.
  // Resolves to {attention, maps}; see `wordMaps`. progress(share): called with 0..1.
  async findMaps(image, answer, progress) {
    const { preprocess: preprocessing, given, grid } = this.settings;
    const inputs = [given[0], ...answer.tokens];
    const logprobsOf = async (pixels, count) => {
      const hidden = await this.encode(pixels, count);
      const { logits } = await this.decode(hidden, Array(count).fill(inputs.slice(0, -1)), null);
      return logprobsOfTokens(logits, answer.tokens);
    };
    const pixels = preprocess(image, preprocessing);
    const maps = await occlusionMaps(pixels, preprocessing.image_size, grid, logprobsOf, progress);
    return wordMaps(maps, answer.words, grid, image, visibleWindow(image, preprocessing));
  }

  // pixels: Float32Array (count, 3, H, W), preprocessed
  async encode(pixels, count) {
    const shape = [count, 3, ...this.settings.preprocess.image_size];
    const outputs = await this.encoder.run({ pixel_values: new ort.Tensor('float32', pixels, shape) });
    return outputs.last_hidden_state;
  }

  // The decoder for equally long `tokens` of each caption. past: the cache of the tokens before, or null.
  async decode(hidden, tokens, past) {
    const inputs = { encoder_hidden_states: hidden };
    const shape = [tokens.length, tokens[0].length];
    inputs.input_ids = new ort.Tensor('int64', BigInt64Array.from(tokens.flat(), BigInt), shape);
    const { n_head, n_embd } = this.config.decoder;
    for (const part of this.cacheParts) {
      inputs[`past_key_values.${part}`] =
        past?.[part] ?? new ort.Tensor('float32', [], [tokens.length, n_head, 0, n_embd / n_head]);
    }
    return this.decoder.run(inputs);
  }

  // The `step` of a search: the decoder with its cache.
  stepper(hidden) {
    let past = null;
    return async (tokens, origin) => {
      const reordered = past && Object.fromEntries(this.cacheParts.map(part => [part, reorder(past[part], origin)]));
      const outputs = await this.decode(hidden, tokens, reordered);
      past = Object.fromEntries(this.cacheParts.map(part => [part, outputs[`present.${part}`]]));
      const [captions, length, vocabSize] = outputs.logits.dims;
      return Array.from({ length: captions }, (_, caption) => {
        const start = (caption * length + length - 1) * vocabSize;
        return outputs.logits.data.slice(start, start + vocabSize);
      });
    };
  }

  // Like in Python, text and pieces leave out an incomplete character at the end.
  text(tokens) {
    return decodeUtf8(tokens.flatMap(token => this.bytes.get(token) ?? []), true).replace(OUTER_BLANKS, '');
  }

  // The bytes of each token; special tokens have none.
  pieces(tokens) {
    const pieces = tokens.map(token => (this.special.has(token) ? [] : this.bytes.get(token) ?? []));
    const bytes = pieces.flat();
    let left = bytes.length;
    while (decodeUtf8(bytes.slice(0, left), false) !== decodeUtf8(bytes, true)) left--;
    return pieces.map(piece => {
      const kept = piece.slice(0, left);
      left -= kept.length;
      return kept;
    });
  }
}

// logits (captions, T, vocabulary), tokens (T) -> the log-probabilities of the tokens in each caption.
function logprobsOfTokens({ dims: [captions, , vocabSize], data }, tokens) {
  return Array.from({ length: captions }, (_, caption) => tokens.map((token, position) => {
    const start = (caption * tokens.length + position) * vocabSize;
    const row = data.subarray(start, start + vocabSize);
    return logSoftmax(row)[token];
  }));
}

// skipsIncomplete: an incomplete character at the end is left out, not replaced.
function decodeUtf8(bytes, skipsIncomplete) {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  return decoder.decode(Uint8Array.from(bytes), { stream: skipsIncomplete });
}

// The rows `origin` of a cache (captions, heads, positions, channels).
function reorder(cache, origin) {
  if (origin.length === cache.dims[0] && origin.every((row, index) => row === index)) return cache;
  const size = cache.data.length / cache.dims[0];
  const data = new Float32Array(origin.length * size);
  origin.forEach((row, index) => data.set(cache.data.subarray(row * size, (row + 1) * size), index * size));
  return new ort.Tensor('float32', data, [origin.length, ...cache.dims.slice(1)]);
}

// The bytes of each token. GPT-2's vocabulary writes bytes that are not printable as characters from 256 on.
function tokenBytes(tokenizer) {
  const isPrintable = code => (code > 32 && code < 127) || (code > 160 && code !== 173);
  const byteOf = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) byteOf.set(isPrintable(byte) ? byte : next++, byte);
  const bytes = new Map();
  for (const [word, token] of Object.entries(tokenizer.model.vocab)) {
    bytes.set(token, [...word].map(character => byteOf.get(character.codePointAt(0))));
  }
  for (const { id, content } of tokenizer.added_tokens) bytes.set(id, [...new TextEncoder().encode(content)]);
  return bytes;
}

async function request(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  return response;
}

async function readJson(address) {
  return (await request(address)).json();
}

async function download(address, progress) {
  const response = await request(address);
  const total = Number(response.headers.get('Content-Length'));
  const chunks = [];
  let read = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    read += value.length;
    progress(read, Math.max(total, read));
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
