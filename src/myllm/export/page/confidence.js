// Confidence of a caption: the same numbers as `myllm.caption`.

const PUNCTUATION = /^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu;

// caption: {pieces, logprobs, prefixLength}. pieces: the bytes of each token; logprobs: of the tokens after the prefix,
// and of the end. calibration: as config.json holds it, or null.
// Returns 0..1: the mean confidence of the informative words. Without a calibration, the geometric mean of the tokens'
// probabilities.
export function captionConfidence(caption, calibration) {
  const score = meanLogprob(caption.logprobs);
  if (!calibration) return Math.exp(score);
  const words = splitWords(caption).filter(word => word.logprob !== null);
  const informative = words.filter(({ text }) => {
    const word = normalizeWord(text);
    return word && !calibration.common_words.includes(word);
  });
  const counted = informative.length ? informative : words;
  return counted.reduce((sum, word) => sum + wordConfidence(word, score, calibration), 0) / Math.max(1, counted.length);
}

export function meanLogprob(logprobs) {
  return logprobs.reduce((sum, logprob) => sum + logprob, 0) / Math.max(1, logprobs.length);
}

// The words of a caption: {text, logprob}, the sum over a word's tokens, or null if all of them are of the prefix. A
// blank between words belongs to the second one.
export function splitWords({ pieces, logprobs, prefixLength }) {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const bytes = pieces.flat();
  const tokenAt = pieces.flatMap((piece, token) => piece.map(() => token));
  const words = [];
  let last = -1;
  // as characters below 256, so that an expression can search bytes
  for (const { 0: word, index } of String.fromCharCode(...bytes).matchAll(/[^ \t-\r\x1c-\x1f]+/g)) {
    const first = Math.min(tokenAt[index], last + 1);
    last = tokenAt[index + word.length - 1];
    const chosen = logprobs.slice(Math.max(0, first - prefixLength), Math.max(0, last + 1 - prefixLength));
    const text = decoder.decode(Uint8Array.from(bytes.slice(index, index + word.length)));
    words.push({ text, logprob: chosen.length ? chosen.reduce((sum, logprob) => sum + logprob) : null });
  }
  return words;
}

// A word without case and without the punctuation around it.
export function normalizeWord(word) {
  return [...word.replace(PUNCTUATION, '')].map(foldCase).join('');
}

// Python's str.casefold, character by character
function foldCase(character) {
  if (character === 'ı') return character;
  if (/\p{Script=Cherokee}/u.test(character)) return character.toUpperCase();
  return character.toLowerCase().toUpperCase().toLowerCase(); // ẞ is ß, is SS, is ss
}

function wordConfidence({ text, logprob }, score, { offsets, ...weights }) {
  const word = normalizeWord(text);
  const offset = Object.hasOwn(offsets, word) ? offsets[word] : 0;
  return 1 / (1 + Math.exp(-(weights.logprob * logprob + weights.score * score + weights.constant + offset)));
}
