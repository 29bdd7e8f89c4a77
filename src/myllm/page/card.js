// One picture on the page: its caption while it is written, then its words, and what can be done with them.

import { percent, showWords } from './words.js';

const THUMBNAIL_SIDE = 320; // pixels
const SMALL_SIDE = 128; // pixels; a smaller picture is probably drawn, and is enlarged with sharp pixels
const COPIED_MS = 1500;

export class Card {
  // picture: {name, address, file}; file is null for a picture of the history.
  // actions: {announce(text), again(card), remove(card), locate(card, onProgress)}; without locate, the answers have all
  // heat maps that there are.
  constructor(picture, actions) {
    this.picture = picture;
    this.answer = null;
    this.element = document.getElementById('card').content.firstElementChild.cloneNode(true);
    const find = selector => this.element.querySelector(selector);
    this.caption = find('.caption');
    this.description = find('.description');
    this.errorText = find('.error');
    this.image = find('img');
    this.canvas = find('canvas');
    this.locateButton = find('.locate');
    find('.name').textContent = picture.name;
    this.showPicture(picture.address, find('.frame'));
    for (const button of this.element.querySelectorAll('[data-copy]')) {
      const label = button.textContent;
      button.onclick = () => this.copy(button, label, actions.announce);
    }
    find('.again').onclick = () => {
      this.element.focus({ preventScroll: true }); // the button is hidden meanwhile
      actions.again(this);
    };
    find('.remove').onclick = () => actions.remove(this);
    find('.remove').setAttribute('aria-label', `Close ${picture.name}`);
    this.locateButton.onclick = () => this.locate(actions);
    this.locateButton.hidden = !actions.locate || !picture.file;
    this.setState('waiting');
  }

  // Fill the box, also if the picture is smaller.
  showPicture(address, frame) {
    this.image.onload = () => {
      const { naturalWidth: width, naturalHeight: height } = this.image;
      frame.style.setProperty('--ratio', width / height);
      markSmall(this.image);
      frame.classList.add('loaded');
    };
    this.image.onerror = () => frame.replaceChildren('This browser cannot show the picture.');
    this.image.src = address;
  }

  // waiting, working, done or failed
  setState(state, text = '') {
    this.element.dataset.state = state;
    this.element.setAttribute('aria-busy', state === 'waiting' || state === 'working');
    if (state !== 'done') {
      this.caption.replaceChildren(text || (state === 'waiting' ? 'Waiting …' : ''));
      for (const name of ['role', 'aria-label']) this.caption.removeAttribute(name); // of the words before
    }
    this.errorText.hidden = state !== 'failed';
    for (const part of this.element.querySelectorAll('.answer, [data-copy]')) part.hidden = state !== 'done';
    this.element.querySelector('.again').hidden = !this.picture.file || (state !== 'done' && state !== 'failed');
    this.canvas.hidden = true;
  }

  // Moves the focus to the first word, else to the first copy button, else to the card.
  focus() {
    (this.element.querySelector('.word, [data-copy]:not([hidden])') ?? this.element).focus();
  }

  showError(message) {
    this.setState('failed');
    this.errorText.textContent = message[0].toUpperCase() + message.slice(1);
  }

  // answer: of `POST /v1/caption`
  showAnswer(answer) {
    this.answer = answer;
    this.setState('done');
    this.image.alt = answer.caption;
    this.element.querySelector('.share').textContent = `confidence ${percent(answer.confidence)}`;
    this.element.querySelector('.scale span').style.setProperty('width', `${100 * answer.confidence}%`);
    showWords(this, answer);
    this.showNote(answer);
    this.locateButton.hidden ||= Boolean(answer.attention) || !answer.words.length;
    this.locateButton.textContent = 'Show where it looked';
    this.showAlternatives(answer.alternatives);
  }

  // What is wrong with a caption, although it was written.
  showNote({ missing = [], ended_by }) {
    const note = this.element.querySelector('.note');
    const parts = [];
    if (missing.length) parts.push(`Not in the caption: ${missing.join(', ')}.`);
    if (ended_by === 'length') parts.push('Cut off at the longest length.');
    note.textContent = parts.join(' ');
    note.hidden = !parts.length;
  }

  showAlternatives(texts) {
    const details = this.element.querySelector('.alternatives');
    details.hidden = !texts.length;
    details.querySelector('summary').textContent = `${texts.length} ${texts.length === 1 ? 'alternative' : 'alternatives'}`;
    details.querySelector('ol').replaceChildren(...texts.map(text => {
      const item = document.createElement('li');
      item.dir = 'auto';
      item.textContent = text;
      return item;
    }));
  }

  async locate({ announce, locate }) {
    this.element.focus({ preventScroll: true }); // a disabled button loses the focus
    this.locateButton.disabled = true;
    try {
      this.showAnswer(await locate(this, share => { this.locateButton.textContent = `Looking: ${percent(share)}`; }));
      announce(`Point at a word of ${this.picture.name} to see where the captioner looked.`);
    } catch (error) {
      this.locateButton.textContent = error.message;
    }
    this.locateButton.disabled = false;
  }

  async copy(button, label, announce) {
    const { caption } = this.answer;
    const quoted = caption.replaceAll('&', '&amp;').replaceAll('"', '&quot;').replaceAll('<', '&lt;');
    const texts = { text: caption, alt: `alt="${quoted}"`, json: JSON.stringify(this.asJson(), null, 2) };
    const isCopied = await copyText(texts[button.dataset.copy]);
    button.textContent = isCopied ? 'Copied' : 'Not allowed';
    announce(isCopied ? `Copied: ${label}` : 'This browser does not let the page copy.');
    setTimeout(() => { button.textContent = label; }, COPIED_MS);
  }

  // A line of what `myllm caption` writes, without heat maps.
  asJson() {
    const { attention, tokens, words, ...answer } = this.answer;
    const plain = words.map(({ text, confidence }) => ({ text, confidence }));
    return { image: this.picture.name, ...answer, words: plain };
  }

  // A small copy of the picture as a data URI; empty if this browser cannot show it.
  async thumbnail() {
    try {
      await this.image.decode();
    } catch {
      return '';
    }
    const { naturalWidth: width, naturalHeight: height } = this.image;
    const canvas = document.createElement('canvas');
    const scale = Math.min(1, THUMBNAIL_SIDE / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.drawImage(this.image, 0, 0, canvas.width, canvas.height);
    return isSmall(this.image) ? canvas.toDataURL('image/png') : canvas.toDataURL('image/webp', 0.8);
  }
}

function isSmall({ naturalWidth, naturalHeight }) {
  return Math.max(naturalWidth, naturalHeight) < SMALL_SIDE;
}

// For the style sheet, which enlarges small pictures without blur.
export function markSmall(image) {
  image.classList.toggle('small', isSmall(image));
}

// Returns whether it worked. Browsers offer `navigator.clipboard` only to pages that come by HTTPS or from localhost.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement('textarea');
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand('copy');
    field.remove();
    return isCopied;
  }
}
