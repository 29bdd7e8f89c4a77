// Greedy and beam search for one picture: the search of `myllm.decoding`, under the same names.

const IMPOSSIBLE = -Infinity;

// request: {step, end, prefix, config, onTokens}. end: the token that begins and ends a caption; prefix: tokens that a
// caption begins with; config: decoding options; step(tokens, origin): the model. In step, tokens[i] are the newest
// tokens of caption i, which continues caption origin[i] of the call before; it resolves to a Float32Array of logits for
// each. onTokens(tokens), if given: called with the tokens so far, the prefix included; not with beams.
// Returns hypotheses, best first: {tokens, logprobs, endedBy, rank}; tokens include the prefix, not the end.
export async function runSearch(request) {
  const { step, end, prefix, config } = request;
  const strategy = config.beams > 1 ? new Beams(request) : new Greedy(request);
  let history = [{ tokens: [end, ...prefix], logprobs: [], total: 0 }];
  let newest = [history[0].tokens];
  let origin = [0];
  for (let length = 1; length <= config.max_new_tokens && history.length; length++) {
    const logits = await step(newest, origin);
    const logprobs = logits.map(logSoftmax);
    const scores = (strategy.ranksLogprobs ? logprobs : logits).map((row, index) =>
      applyRules(row.slice(), history[index], request));
    const choice = strategy.choose(history, scores, logprobs);
    history = choice.map(candidate => extend(history[candidate.origin], candidate));
    newest = choice.map(({ token }) => [token]);
    if (config.beams === 1 && history.length) request.onTokens?.(history[0].tokens.slice(1));
    origin = choice.map(candidate => candidate.origin);
  }
  return strategy.results().slice(0, config.num_return_sequences ?? undefined);
}

function extend(caption, { token, logprob, total }) {
  return { tokens: [...caption.tokens, token], logprobs: [...caption.logprobs, logprob], total };
}

// Takes the likeliest token each time.
class Greedy {
  ranksLogprobs = false;

  constructor({ end }) {
    this.end = end;
  }

  choose([caption], [scores], [logprobs]) {
    const token = scores.reduce((best, score, index) => (score > scores[best] ? index : best), 0);
    if (scores[token] === IMPOSSIBLE) throw noTokenError();
    const choice = { origin: 0, token, logprob: logprobs[token], total: 0 };
    this.caption = extend(caption, choice);
    return token === this.end ? [] : [choice];
  }

  results() {
    return [hypothesis(this.caption, this.end, 1)];
  }
}

// Keeps the likeliest unfinished captions, and sets finished ones aside until the search is over.
class Beams {
  ranksLogprobs = true;

  constructor({ end, config }) {
    this.end = end;
    this.config = config;
    this.ended = [];
  }

  choose(history, scores, logprobs) {
    const { beams, max_new_tokens } = this.config;
    const length = history[0].logprobs.length + 1;
    const kept = [];
    // twice as many candidates as beams, so that enough remain if all beams end now
    bestCandidates(scores, history, 2 * beams).forEach((candidate, position) => {
      candidate.logprob = logprobs[candidate.origin][candidate.token];
      if (kept.length === beams) return;
      if (candidate.token !== this.end) kept.push(candidate);
      else if (position < beams) this.add(history, candidate);
    });
    const isOver = this.isOver(kept, length);
    if (isOver && !this.ended.length) throw noTokenError();
    if (isOver) return [];
    if (length === max_new_tokens) kept.forEach(candidate => this.add(history, candidate));
    return kept;
  }

  results() {
    return this.ended;
  }

  add(history, candidate) {
    const caption = extend(history[candidate.origin], candidate);
    this.ended.push(hypothesis(caption, this.end, this.config.length_penalty));
    this.ended = this.ended.sort((first, second) => second.rank - first.rank).slice(0, this.config.beams);
  }

  // Same rule as in transformers: see `Beams._is_over` of `myllm.decoding.beam`.
  isOver(kept, length) {
    const { beams, early_stopping, length_penalty, max_new_tokens } = this.config;
    if (!kept.length) return true;
    if (this.ended.length < beams) return false;
    if (early_stopping === true) return true;
    const finalLength = early_stopping === 'never' && length_penalty > 0 ? max_new_tokens : length;
    return this.ended.at(-1).rank >= kept[0].total / finalLength ** length_penalty;
  }
}

// The caption without begin and end token.
function hypothesis({ tokens, logprobs, total }, end, lengthPenalty) {
  const isEnded = tokens.at(-1) === end;
  const rank = total / logprobs.length ** lengthPenalty;
  return { tokens: tokens.slice(1, isEnded ? -1 : undefined), logprobs, endedBy: isEnded ? 'end' : 'length', rank };
}

function bestCandidates(scores, history, count) {
  const candidates = [];
  scores.forEach((row, origin) => {
    row.forEach((score, token) => {
      const total = Math.fround(history[origin].total + score);
      if (total === IMPOSSIBLE || (candidates.length === count && total <= candidates.at(-1).total)) return;
      let index = candidates.length;
      while (index > 0 && candidates[index - 1].total < total) index--;
      candidates.splice(index, 0, { origin, token, total });
      if (candidates.length > count) candidates.pop();
    });
  });
  return candidates;
}

// Rules change the scores of one caption's next tokens in place; value is the decoding option of the same name.
const RULES = {
  repetition_penalty(scores, { tokens }, value) {
    for (const token of new Set(tokens)) scores[token] *= scores[token] < 0 ? value : 1 / value;
  },

  no_repeat_ngram_size(scores, { tokens }, value) {
    if (value === 0 || tokens.length < value) return;
    const newest = tokens.slice(tokens.length - value + 1).join();
    for (let index = value - 1; index < tokens.length; index++) {
      if (tokens.slice(index - value + 1, index).join() === newest) scores[tokens[index]] = IMPOSSIBLE;
    }
  },

  min_new_tokens(scores, { logprobs }, value, end) {
    if (logprobs.length < value) scores[end] = IMPOSSIBLE;
  },
};

function applyRules(scores, caption, { config, end }) {
  for (const [name, rule] of Object.entries(RULES)) rule(scores, caption, config[name], end);
  return scores;
}

export function logSoftmax(logits) {
  const largest = logits.reduce((first, second) => Math.max(first, second), IMPOSSIBLE);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  if (Number.isNaN(sum)) {
    throw new Error("the model's logits are NaN or all minus infinity; its weights are damaged, or they overflow");
  }
  const logSum = largest + Math.log(sum);
  return logits.map(logit => logit - logSum);
}

function noTokenError() {
  return new Error('the decoding options allow no further token; loosen one of them');
}
