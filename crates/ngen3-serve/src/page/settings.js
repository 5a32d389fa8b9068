// Models and sampling settings.

const SLIDERS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05, value: 0.8, help: '0 always takes the most likely token' },
  { name: 'top_p', label: 'Top p', min: 0.05, max: 1, step: 0.05, value: 1, help: '1 disables it' },
  { name: 'top_k', label: 'Top k', min: 0, max: 200, step: 1, value: 0, help: '0 disables it' },
  { name: 'min_p', label: 'Min p', min: 0, max: 1, step: 0.01, value: 0, help: '0 disables it' },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 1, max: 2, step: 0.05, value: 1, help: '1 disables it' },
  { name: 'max_tokens', label: 'Max tokens', min: 1, max: 2048, step: 1, value: 256, help: '' },
];
const settings = store.read('settings', {});
let models = [];

for (const { name, label, min, max, step, value, help } of SLIDERS) {
  const output = make('output', { for: 'slider-' + name });
  const input = make('input', { type: 'range', id: 'slider-' + name, min, max, step, title: help });
  input.oninput = () => { output.value = input.value; settings[name] = Number(input.value); store.write('settings', settings); };
  input.set = (to) => { input.value = to; output.value = input.value; };
  input.set(settings[name] ?? value);
  const row = make('span', { class: 'row' }, make('label', { for: input.id }, label), output);
  $('sliders').append(make('div', { class: 'field' }, row, input));
}
for (const name of ['system', 'seed']) {
  $(name).value = settings[name] ?? '';
  $(name).oninput = () => { settings[name] = $(name).value; store.write('settings', settings); };
}
$('reset').onclick = () => {
  for (const { name, value } of SLIDERS) { delete settings[name]; $('slider-' + name).set(value); }
  for (const name of ['system', 'seed']) { delete settings[name]; $(name).value = ''; }
  store.write('settings', settings);
};

/** Returns the sampling parameters of a request. */
function sampling() {
  const chosen = Object.fromEntries(SLIDERS.map(({ name }) => [name, Number($('slider-' + name).value)]));
  const seed = $('seed').value.trim();
  if (seed !== '') chosen.seed = Number(seed);
  return chosen;
}

/** Returns the models of the next answers: one, or two to compare. */
function chosenModels() {
  const chosen = [$('model').value, $('compare').value].filter(Boolean);
  return chosen.map((id) => models.find((model) => model.id === id));
}

/** Returns true if the first model answers turns; a base model continues a text. */
function isChat() { return Boolean(chosenModels()[0]?.chat); }

async function loadModels() {
  models = (await (await call('/v1/models')).json()).data;
  const pick = (select, first) => {
    select.replaceChildren(...first, ...models.map(({ id }) => make('option', { value: id }, id)));
    const kept = settings[select.id];
    if (models.some(({ id }) => id === kept)) select.value = kept;
  };
  pick($('model'), []);
  pick($('compare'), [make('option', { value: '' }, 'nothing')]);
  $('compare-field').hidden = models.length < 2;
  const longest = Math.max(64, ...models.map((model) => model.max_model_len));
  $('slider-max_tokens').max = Math.min(longest, 8192);
  $('slider-max_tokens').set(settings.max_tokens ?? Math.min(256, longest));
}
