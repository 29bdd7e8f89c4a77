// The form of decoding options. Fields have the names of the options; what differs from a model's default is sent.

const form = document.getElementById('decoding');
const panel = document.getElementById('options');
const fields = form.elements;
const LISTS = ['force_words', 'bad_words'];

// models and limits: of `GET /v1/models`; names: options that the engine knows.
export function setUpOptions({ data: models, limits }, names) {
  for (const field of form.querySelectorAll('[data-field]')) field.hidden = !names.includes(field.dataset.field);
  fields.model.replaceChildren(...models.map(({ id }) => new Option(id, id)));
  form.querySelector('[data-field=model]').hidden = models.length < 2;
  fields.beams.max = fields.num_return_sequences.max = limits.captions;
  const setDefaults = () => {
    const { decode, max_new_tokens } = chosen(models);
    fields.max_new_tokens.max = max_new_tokens;
    for (const name of names) setDefault(fields[name], decode[name]);
    showSampling();
  };
  fields.model.onchange = setDefaults;
  fields.do_sample.onchange = showSampling;
  form.onreset = () => setTimeout(showSampling); // the event comes before the change
  form.onsubmit = event => event.preventDefault();
  setDefaults();
}

// Returns {model, options}. Throws if a field has a wrong value, which the browser then points out.
export function readOptions(models) {
  if (!form.checkValidity()) {
    panel.open = true;
    form.reportValidity();
    throw new Error('one of the options has a wrong value');
  }
  const options = {};
  for (const field of fields) {
    if (!field.name || field.name === 'model' || field.disabled || !isChanged(field)) continue;
    const items = field.value.split(',').map(item => item.trim()).filter(Boolean);
    options[field.name] = LISTS.includes(field.name) ? items : valueOf(field);
  }
  if (fields.do_sample.checked && fields.beams.defaultValue !== '1') options.beams = 1;
  if (options.force_words?.length && fields.beams.valueAsNumber === 1) options.beams = Math.min(4, fields.beams.max);
  return { model: chosen(models), options };
}

function chosen(models) {
  return models.find(({ id }) => id === fields.model.value) ?? models[0];
}

// A default may be more than the field's maximum, which then holds.
function setDefault(field, value) {
  if (field.type === 'checkbox') field.checked = field.defaultChecked = Boolean(value);
  else if (field.type === 'number') field.value = field.defaultValue = Math.min(value ?? 1, field.max);
  else field.value = field.defaultValue = [value].flat().join(', ');
}

function isChanged(field) {
  return field.type === 'checkbox' ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;
}

function valueOf(field) {
  if (field.type === 'checkbox') return field.checked;
  return field.type === 'number' ? field.valueAsNumber : field.value;
}

// Sampling excludes beams, which force_words needs.
function showSampling() {
  const isSampling = fields.do_sample.checked;
  fields.beams.disabled = fields.force_words.disabled = isSampling;
  for (const field of form.querySelectorAll('.sampling input')) field.disabled = !isSampling;
}
