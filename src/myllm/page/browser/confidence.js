// Words of a caption and their confidence: the same numbers as `myllm.caption`.

const PUNCTUATION = /^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu;

// caption: {pieces, logprobs, prefixLength}. pieces: the bytes of each token; logprobs: of the tokens after the prefix,
// and of the end. calibration: as config.json holds it, or null.
// Returns {text, tokens, logprob, confidence} for each word. Words of the prefix have neither logprob nor confidence,
// only null. Without a calibration, confidence is the probability of the word's tokens.
export function captionWords(caption, calibration) {
  const score = meanLogprob(caption.logprobs);
  const confidence = ({ text, logprob }) => {
    if (logprob === null) return null;
    return calibration ? calibratedConfidence(text, logprob, score, calibration) : Math.exp(logprob);
  };
  return splitWords(caption).map(word => ({ ...word, confidence: confidence(word) }));
}

// Returns 0..1: the mean confidence of the informative words. Without a calibration, the geometric mean of the tokens'
// probabilities.
export function captionConfidence(caption, calibration) {
  if (!calibration) return Math.exp(meanLogprob(caption.logprobs));
  const words = captionWords(caption, calibration).filter(word => word.confidence !== null);
  const informative = words.filter(({ text }) => {
    const word = normalizeWord(text);
    return word && !calibration.common_words.includes(word);
  });
  const counted = informative.length ? informative : words;
  return counted.reduce((sum, word) => sum + word.confidence, 0) / Math.max(1, counted.length);
}

export function meanLogprob(logprobs) {
  return logprobs.reduce((sum, logprob) => sum + logprob, 0) / Math.max(1, logprobs.length);
}

// The words of a caption: {text, tokens, logprob}. tokens: index of a word's first token, and of the one after its
// last; logprob: sum over its tokens, or null if all are of the prefix. A blank between words belongs to the second.
function splitWords({ pieces, logprobs, prefixLength }) {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const bytes = pieces.flat();
  const tokenAt = pieces.flatMap((piece, token) => piece.map(() => token));
  const words = [];
  let stop = 0;
  // as characters below 256, so that an expression can search bytes
  for (const { 0: word, index } of String.fromCharCode(...bytes).matchAll(/[^ \t-\r\x1c-\x1f]+/g)) {
    const first = Math.min(tokenAt[index], stop);
    stop = tokenAt[index + word.length - 1] + 1;
    const chosen = logprobs.slice(Math.max(0, first - prefixLength), Math.max(0, stop - prefixLength));
    const text = decoder.decode(Uint8Array.from(bytes.slice(index, index + word.length)));
    const logprob = chosen.length ? chosen.reduce((sum, value) => sum + value) : null;
    words.push({ text, tokens: [first, stop], logprob });
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

function calibratedConfidence(text, logprob, score, { offsets, ...weights }) {
  const word = normalizeWord(text);
  const offset = Object.hasOwn(offsets, word) ? offsets[word] : 0;
  return 1 / (1 + Math.exp(-(weights.logprob * logprob + weights.score * score + weights.constant + offset)));
}
