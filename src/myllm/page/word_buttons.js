// Words of a caption as buttons, which show something while they are pointed at or have the focus.
'use strict';

// show(word): called with the button to show, or with null. Pressing a word keeps it shown until it is pressed again.
function showWhenPointedAt(words, show) {
  let pressed = null;

  const showOne = current => {
    for (const word of words) word.classList.toggle('shown', word === current);
    show(current);
  };
  const press = word => {
    pressed = word === pressed ? null : word;
    for (const other of words) other.setAttribute('aria-pressed', other === pressed);
    showOne(pressed);
  };
  for (const word of words) {
    word.setAttribute('aria-pressed', 'false');
    word.addEventListener('click', () => press(word));
    word.addEventListener('focus', () => showOne(word));
    word.addEventListener('blur', () => showOne(pressed));
    word.addEventListener('pointerenter', event => { if (event.pointerType !== 'touch') showOne(word); });
    word.addEventListener('pointerleave', event => { if (event.pointerType !== 'touch') showOne(pressed); });
    word.addEventListener('keydown', event => { if (event.key === 'Escape') press(pressed); });
  }
}

// The Tab key stops once per caption; the arrow keys move from word to word (a "roving tabindex").
function addArrowKeys(caption, label) {
  const words = [...caption.querySelectorAll('.word')];
  if (!words.length) return;
  caption.setAttribute('role', 'toolbar');
  caption.setAttribute('aria-label', label);
  words.forEach((word, index) => {
    word.tabIndex = index ? -1 : 0;
    word.addEventListener('focus', () => {
      for (const other of words) other.tabIndex = other === word ? 0 : -1;
    });
    word.addEventListener('keydown', event => {
      const step = getComputedStyle(caption).direction === 'rtl' ? -1 : 1;
      const next = { ArrowRight: index + step, ArrowLeft: index - step, Home: 0, End: words.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      words[next]?.focus();
    });
  });
}
