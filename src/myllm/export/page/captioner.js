// A captioner that `myllm export` wrote, on ONNX Runtime Web: pixels in, captions out.

import * as ort from './runtime/ort.wasm.bundle.min.mjs';
import { captionConfidence, meanLogprob } from './confidence.js';
import { preprocess } from './pixels.js';
import { runSearch } from './search.js';

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
    this.special = new Set(tokenizer.added_tokens.map(({ id }) => id));
    this.encoder = encoder;
    this.decoder = decoder;
  }

  // image: {width, height, data} of RGB bytes -> {text, score, confidence, tokens, alternatives}
  async caption(image, options = {}) {
    const { preprocess: preprocessing, decode, given: [end, ...prefix], n_positions, calibration } = this.settings;
    const config = { ...decode, ...options };
    config.max_new_tokens = Math.min(config.max_new_tokens, n_positions - prefix.length);
    config.min_new_tokens = Math.min(config.min_new_tokens, config.max_new_tokens);
    const shape = [1, 3, ...preprocessing.image_size];
    const pixels = new ort.Tensor('float32', preprocess(image, preprocessing), shape);
    const hidden = (await this.encoder.run({ pixel_values: pixels })).last_hidden_state;
    const hypotheses = await runSearch({ step: this.stepper(hidden), end, prefix, config });
    const texts = hypotheses.map(({ tokens }) => this.text(tokens));
    const { tokens, logprobs } = hypotheses[0];
    const caption = { pieces: this.pieces(tokens), logprobs, prefixLength: prefix.length };
    const confidence = captionConfidence(caption, calibration);
    return { text: texts[0], score: meanLogprob(logprobs), confidence, tokens, alternatives: texts.slice(1) };
  }

  // The `step` of a search: the decoder with its cache.
  stepper(hidden) {
    const { n_layer, n_head, n_embd } = this.config.decoder;
    const parts = Array.from({ length: n_layer }, (_, layer) => [`${layer}.key`, `${layer}.value`]).flat();
    let past = null;
    return async (tokens, origin) => {
      const inputs = { encoder_hidden_states: hidden };
      const shape = [tokens.length, tokens[0].length];
      inputs.input_ids = new ort.Tensor('int64', BigInt64Array.from(tokens.flat(), BigInt), shape);
      for (const part of parts) {
        inputs[`past_key_values.${part}`] = past
          ? reorder(past[part], origin)
          : new ort.Tensor('float32', [], [tokens.length, n_head, 0, n_embd / n_head]);
      }
      const outputs = await this.decoder.run(inputs);
      past = Object.fromEntries(parts.map(part => [part, outputs[`present.${part}`]]));
      const [captions, length, vocabSize] = outputs.logits.dims;
      return Array.from({ length: captions }, (_, caption) => {
        const start = (caption * length + length - 1) * vocabSize;
        return outputs.logits.data.slice(start, start + vocabSize);
      });
    };
  }

  // As in Python, text and pieces leave out an incomplete character at the end.
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
