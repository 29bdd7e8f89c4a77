// Paints heat maps of words over a picture, on one scale for all words, so that an even map looks even.
'use strict';

// Position, red, green, blue and opacity. 0: at most a sixteenth of the even share, dark. 0.5: an even share, the
// picture as it is. 1: at least 16 times the even share, yellow. Lightness rises steadily, for readers with any colour vision.
const HEAT = [[0, 16, 20, 60, 180], [0.5, 120, 70, 20, 0], [0.75, 213, 94, 0, 130], [1, 255, 236, 110, 170]];

function heatColour(byte) {
  const value = byte / 255;
  const above = HEAT.findIndex(([position]) => position >= value && position > 0);
  const [low, high] = [HEAT[above - 1], HEAT[above]];
  const share = (value - low[0]) / (high[0] - low[0]);
  return low.slice(1).map((channel, index) => channel + share * (high[index + 1] - channel));
}

// map: "width,height," and then the base64 of one byte for each cell.
function paintHeatMap(canvas, image, map) {
  const [width, height, bytes] = map.split(',');
  const small = document.createElement('canvas');
  small.width = width;
  small.height = height;
  const pixels = new ImageData(Number(width), Number(height));
  [...atob(bytes)].forEach((byte, index) => pixels.data.set(heatColour(byte.charCodeAt(0)), 4 * index));
  small.getContext('2d').putImageData(pixels, 0, 0);
  canvas.width = image.width * 2;
  canvas.height = image.height * 2;
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
