// node page.mjs JOB < cases.json: runs a job on the page's modules for each case, and prints the results as JSON.

import { readFileSync } from 'node:fs';

// as text, because Node.js takes a .js file for a CommonJS module
function load(name) {
  const source = readFileSync(new URL(`../../src/myllm/page/browser/${name}`, import.meta.url), 'utf8');
  return import(`data:text/javascript,${encodeURIComponent(source)}`);
}

const { captionConfidence, captionWords, normalizeWord } = await load('confidence.js');
const { preprocess } = await load('pixels.js');
const { runSearch } = await load('search.js');

// A model whose next token depends on the last two of a caption; null stands for minus infinity.
function toyStep(table, end) {
  let captions = [[]];
  return async (tokens, origin) => {
    captions = origin.map((row, index) => [...captions[row], ...tokens[index]]);
    const logits = captions.map(caption => table[caption.at(-2) ?? end][caption.at(-1)]);
    return logits.map(row => Float32Array.from(row, logit => logit ?? -Infinity));
  };
}

const JOBS = {
  search: ({ table, ...request }) =>
    runSearch({ ...request, step: toyStep(table, request.end) }).catch(error => ({ error: error.message })),
  confidence: ({ calibration, ...caption }) =>
    ({ confidence: captionConfidence(caption, calibration), words: captionWords(caption, calibration) }),
  normalize: normalizeWord,
  preprocess: ({ image, config }) => [...preprocess({ ...image, data: Uint8Array.from(image.data) }, config)],
};

const cases = JSON.parse(readFileSync(0, 'utf8'));
console.log(JSON.stringify(await Promise.all(cases.map(JOBS[process.argv[2]]))));
