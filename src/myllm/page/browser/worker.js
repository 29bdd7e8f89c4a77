// The captioner in a worker, so that the page stays responsive while it computes.

import { Captioner } from './captioner.js';
import { fromRgba } from './pixels.js';

const folder = new URL('./model/', import.meta.url).href;
const captioner = Captioner.load(folder, (done, total) => self.postMessage({ done, total }));
captioner.then(
  ({ settings }) => self.postMessage({ ready: settings }),
  error => self.postMessage({ error: error.message }),
);

// data: {id, file}, and either the decoding options or the answer whose words are to be located
self.onmessage = async ({ data: { id, file, options, answer } }) => {
  const report = update => self.postMessage({ id, update });
  try {
    const loaded = await captioner;
    const image = fromRgba(await decode(file));
    const result = answer
      ? await loaded.findMaps(image, answer, report)
      : await loaded.caption(image, options, report);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};

// RGBA bytes of a picture file: upright, on white, without colour conversion.
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    throw new Error('not a picture that this browser opens');
  }
  try {
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.fillStyle = 'white';
    context.fillRect(0, 0, bitmap.width, bitmap.height);
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}
