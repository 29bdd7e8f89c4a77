// Greedy and beam search over an exported decoder: `myllm.inference.onnx_search`, for one picture.

const NEVER = -Infinity;

// step(tokens, rows): tokens is a list for each caption; rows says which caption of the last call each goes on from
// -> logits of what comes next, a Float32Array for each caption. given: what every caption begins with, the end first.
// -> captions, best first: {tokens, logprobs, endedBy}.
export async function search(step, given, options) {
  return options.beams > 1 ? beams(step, given, options) : greedy(step, given, options);
}

async function greedy(step, given, options) {
  const end = given[0];
  const caption = { tokens: given.slice(1), logprobs: [], endedBy: 'length' };
  let newest = given;
  let said = given;
  for (let chosen = 0; chosen < options.max_new_tokens; chosen++) {
    const [logits] = await step([newest], [0]);
    const logprobs = logSoftmax(logits);
    const scores = byRules(logits.slice(), said, given.length, end, options);
    const token = scores.reduce((best, score, at) => (score > scores[best] ? at : best), 0);
    if (scores[token] === NEVER) throw nothingLeft();
    caption.logprobs.push(logprobs[token]);
    if (token === end) {
      caption.endedBy = 'end';
      break;
    }
    caption.tokens.push(token);
    newest = [token];
    said = [...said, token];
  }
  return [caption];
}

async function beams(step, given, options) {
  const end = given[0];
  const width = options.beams;
  let open = [{ said: given, logprobs: [], total: 0 }];
  let newest = [given];
  let rows = [0];
  let ended = [];
  const putAside = (tokens, logprobs, total, endedBy) => {
    ended.push({ tokens, logprobs, endedBy, rank: total / logprobs.length ** options.length_penalty });
    ended = ended.sort((one, other) => other.rank - one.rank).slice(0, width);
  };
  for (let length = 1; length <= options.max_new_tokens; length++) {
    const own = (await step(newest, rows)).map(logSoftmax);
    const scores = own.map((row, beam) => byRules(row.slice(), open[beam].said, given.length, end, options));
    // if every beam ends now, as many open ones remain
    const candidates = best(scores, open, 2 * width);
    const goesOn = [];
    candidates.forEach(({ beam, token, total }, place) => {
      if (goesOn.length === width) return;
      const { said, logprobs } = open[beam];
      const told = [...logprobs, own[beam][token]];
      if (token !== end) goesOn.push({ beam, said: [...said, token], logprobs: told, total });
      else if (place < width) putAside(said.slice(1), told, total, 'end');
    });
    const isOver = isSearchOver(ended, goesOn, length, options);
    if (isOver && !ended.length) throw nothingLeft();
    if (isOver) break;
    if (length === options.max_new_tokens) {
      for (const one of goesOn) putAside(one.said.slice(1), one.logprobs, one.total, 'length');
    }
    open = goesOn;
    rows = goesOn.map(one => one.beam);
    newest = goesOn.map(one => [one.said.at(-1)]);
  }
  return ended;
}

// As in myllm.decoding.beam, which does as transformers.
function isSearchOver(ended, open, length, options) {
  if (!open.length) return true;
  if (ended.length < options.beams) return false;
  if (options.early_stopping === true) return true;
  const reached = options.early_stopping === 'never' && options.length_penalty > 0 ? options.max_new_tokens : length;
  return ended.at(-1).rank >= open[0].total / reached ** options.length_penalty;
}

function best(scores, open, count) {
  const found = [];
  scores.forEach((row, beam) => {
    row.forEach((score, token) => {
      const total = Math.fround(open[beam].total + score);
      if (total === NEVER || (found.length === count && total <= found.at(-1).total)) return;
      let at = found.length;
      while (at > 0 && found[at - 1].total < total) at--;
      found.splice(at, 0, { beam, token, total });
      if (found.length > count) found.pop();
    });
  });
  return found;
}

function byRules(scores, said, given, end, options) {
  if (options.repetition_penalty !== 1) {
    for (const token of new Set(said)) scores[token] *= options.repetition_penalty ** (scores[token] < 0 ? 1 : -1);
  }
  const size = options.no_repeat_ngram_size;
  if (size > 0 && said.length >= size) {
    const newest = said.slice(said.length - size + 1).join();
    for (let at = 0; at + size <= said.length; at++) {
      if (said.slice(at, at + size - 1).join() === newest) scores[said[at + size - 1]] = NEVER;
    }
  }
  if (said.length - given < options.min_new_tokens) scores[end] = NEVER;
  return scores;
}

function logSoftmax(logits) {
  let most = NEVER;
  for (const one of logits) most = Math.max(most, one);
  let sum = 0;
  for (const one of logits) sum += Math.exp(one - most);
  if (Number.isNaN(sum)) throw new Error("the model's scores are no numbers; its weights are damaged, or overflow");
  const log = most + Math.log(sum);
  return logits.map(one => one - log);
}

function nothingLeft() {
  return new Error('the decoding options leave nothing that may come next; loosen one');
}
