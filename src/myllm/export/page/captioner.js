// A captioner that `myllm export` wrote, on ONNX Runtime Web: pixels in, captions out.

import * as ort from './runtime/ort.wasm.bundle.min.mjs';
import { preprocessed } from './pixels.js';
import { search } from './search.js';

export class Captioner {
  // folder: address of the export. told(done, total): bytes read of the model.
  static async load(folder, told = () => {}) {
    ort.env.wasm.wasmPaths = { wasm: new URL('./runtime/ort-wasm-simd-threaded.wasm', import.meta.url).href };
    // threads need memory that they share, which a browser grants to isolated pages alone
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
    ort.env.logLevel = 'error';
    const [config, tokenizer] = await Promise.all(['config.json', 'tokenizer.json'].map(name => json(folder + name)));
    const { dtype } = config['transformers.js_config'];
    const suffix = dtype === 'fp32' ? '' : `_${dtype}`;
    const names = ['encoder_model', 'decoder_model_merged'].map(name => `${folder}onnx/${name}${suffix}.onnx`);
    const done = [0, 0];
    const totals = [0, 0];
    const sessions = [];
    for (const [at, name] of names.entries()) {
      const bytes = await fetched(name, (read, total) => {
        done[at] = read;
        totals[at] = total;
        told(done[0] + done[1], totals[0] + totals[1]);
      });
      // rounded weights are restored once: in a browser multiplying with them takes ten times as long
      const extra = { session: { disable_quant_qdq: '1' } };
      sessions.push(await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'], extra }));
    }
    return new Captioner(config, words(tokenizer), ...sessions);
  }

  constructor(config, words, encoder, decoder) {
    this.config = config;
    this.own = config.myllm;
    this.words = words;
    this.encoder = encoder;
    this.decoder = decoder;
  }

  // image: {width, height, data} of RGB bytes -> {text, score, confidence, tokens, alternatives}
  async caption(image, options = {}) {
    const { preprocess, decode, given, n_positions } = this.own;
    const chosen = { ...decode, ...options };
    chosen.max_new_tokens = Math.min(chosen.max_new_tokens, n_positions - given.length + 1);
    chosen.min_new_tokens = Math.min(chosen.min_new_tokens, chosen.max_new_tokens);
    const shape = [1, 3, ...preprocess.image_size];
    const pixels = new ort.Tensor('float32', preprocessed(image, preprocess), shape);
    const seen = (await this.encoder.run({ pixel_values: pixels })).last_hidden_state;
    const found = await search(this.stepper(seen), given, chosen);
    const texts = found.map(one => this.text(one.tokens));
    const { tokens, logprobs } = found[0];
    const score = logprobs.reduce((sum, one) => sum + one, 0) / Math.max(1, logprobs.length);
    return { text: texts[0], score, confidence: Math.exp(score), tokens, alternatives: texts.slice(1) };
  }

  stepper(seen) {
    const { n_layer, n_head, n_embd } = this.config.decoder;
    const parts = Array.from({ length: n_layer }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
    let past = null;
    return async (tokens, rows) => {
      const feeds = { encoder_hidden_states: seen };
      const shape = [tokens.length, tokens[0].length];
      feeds.input_ids = new ort.Tensor('int64', BigInt64Array.from(tokens.flat(), BigInt), shape);
      for (const part of parts) {
        feeds[`past_key_values.${part}`] = past
          ? selected(past[part], rows)
          : new ort.Tensor('float32', [], [tokens.length, n_head, 0, n_embd / n_head]);
      }
      const results = await this.decoder.run(feeds);
      past = Object.fromEntries(parts.map(part => [part, results[`present.${part}`]]));
      const [captions, newest, vocabulary] = results.logits.dims;
      return Array.from({ length: captions }, (_, at) => {
        const last = (at * newest + newest - 1) * vocabulary;
        return results.logits.data.slice(last, last + vocabulary);
      });
    };
  }

  text(tokens) {
    const bytes = tokens.flatMap(token => this.words.get(token) ?? []);
    return new TextDecoder().decode(new Uint8Array(bytes)).trim();
  }
}

// The rows of a cache (captions, heads, positions, channels).
function selected(cache, rows) {
  if (rows.length === cache.dims[0] && rows.every((row, at) => row === at)) return cache;
  const size = cache.data.length / cache.dims[0];
  const data = new Float32Array(rows.length * size);
  rows.forEach((row, at) => data.set(cache.data.subarray(row * size, (row + 1) * size), at * size));
  return new ort.Tensor('float32', data, [rows.length, ...cache.dims.slice(1)]);
}

// The bytes of each token: GPT-2 writes those that are not printable as characters from 256 on.
function words(tokenizer) {
  const plain = code => (code >= 33 && code <= 126) || (code >= 161 && code <= 172) || (code >= 174 && code <= 255);
  const byteOf = new Map();
  let odd = 256;
  for (let byte = 0; byte < 256; byte++) byteOf.set(plain(byte) ? byte : odd++, byte);
  const found = new Map();
  for (const [word, token] of Object.entries(tokenizer.model.vocab)) {
    found.set(token, [...word].map(one => byteOf.get(one.codePointAt(0))));
  }
  for (const { id, content } of tokenizer.added_tokens) found.set(id, [...new TextEncoder().encode(content)]);
  return found;
}

async function json(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  return response.json();
}

async function fetched(address, told) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  const total = Number(response.headers.get('Content-Length'));
  const pieces = [];
  let read = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    read += value.length;
    told(read, Math.max(total, read));
  }
  const bytes = new Uint8Array(read);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
