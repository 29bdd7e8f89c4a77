// node caption.mjs FOLDER NAME PICTURE...: captions pictures with the export FOLDER/NAME in transformers.js, and prints
// JSON: for each picture, the text of the pipeline, and the tokens of the model called directly.

import { AutoModelForVision2Seq, AutoProcessor, env, load_image, pipeline } from '@huggingface/transformers';

const [folder, name, ...pictures] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = folder;
const captioner = await pipeline('image-to-text', name);
const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForVision2Seq.from_pretrained(name);
const results = [];
for (const picture of pictures) {
  const [{ generated_text }] = await captioner(picture);
  const { pixel_values } = await processor(await load_image(picture));
  const [tokens] = (await model.generate({ inputs: pixel_values })).tolist();
  results.push({ text: generated_text, tokens: tokens.map(Number) });
}
console.log(JSON.stringify(results));
