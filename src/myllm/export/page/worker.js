// The captioner beside the page, so that this stays usable while it computes.

import { Captioner } from './captioner.js';
import { fromRgba } from './pixels.js';

const told = (done, total) => self.postMessage({ done, total });
const folder = new URL('./model/', import.meta.url).href;
const captioner = Captioner.load(folder, told);
captioner.then(
  ({ own }) => self.postMessage({ ready: own }),
  error => self.postMessage({ error: error.message }),
);

self.onmessage = async ({ data: { number, file, options } }) => {
  try {
    const image = await opened(file);
    const began = performance.now();
    const caption = await (await captioner).caption(fromRgba(image), options);
    self.postMessage({ number, caption, seconds: (performance.now() - began) / 1000 });
  } catch (error) {
    self.postMessage({ number, error: error.message });
  }
};

// RGBA bytes of a picture's file, upright, on white, its colours as they are stored.
async function opened(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    throw new Error('not a picture that this browser opens');
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}
