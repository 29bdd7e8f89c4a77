// Earlier captions, kept in this browser only: {id, time, name, thumbnail, answer}, the newest first.

const KEY = `myllm.history ${location.pathname}`;
const MAX_ENTRIES = 60;

export function readHistory() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch { // storage is forbidden, or holds something else
    return [];
  }
}

// An entry of the same id is replaced.
export function saveEntry(entry) {
  write([entry, ...readHistory().filter(({ id }) => id !== entry.id)].slice(0, MAX_ENTRIES));
}

export function removeEntry(id) {
  write(readHistory().filter(entry => entry.id !== id));
}

export function clearHistory() {
  write([]);
}

// Leaves out the oldest entries if the browser has no room for them.
function write(entries) {
  for (let count = entries.length; count >= 0; count = Math.min(count - 1, Math.floor(count * 0.9))) {
    try {
      localStorage.setItem(KEY, JSON.stringify(entries.slice(0, count)));
      return;
    } catch { /* too much */ }
  }
}
