// Notebook: a base model continues a text. With two models, each has a sheet of its own that begins with the same text.

const notebook = { text: store.read('notebook', ''), history: [], last: null, sheets: [], writing: null };

function drawNotebook() {
  const asked = chosenModels();
  notebook.sheets = asked.map((model, index) => {
    const area = make('textarea', { 'aria-label': 'Text for ' + model.id, spellcheck: 'false', placeholder: 'Write a beginning, and let the model continue it.' });
    area.value = notebook.text;
    area.oninput = () => { if (index === 0) { notebook.text = area.value; store.write('notebook', area.value); } };
    const odds = make('div', { class: 'text', hidden: true, 'aria-label': 'Text of ' + model.id });
    odds.onclick = () => { odds.hidden = true; area.hidden = false; area.focus(); };
    const note = make('div', { class: 'under' }, make('span'));
    return { model, area, odds, note: note.firstChild, made: make('section', { class: 'sheet' }, make('h2', {}, model.id), area, odds, note) };
  });
  $('pages').replaceChildren(...notebook.sheets.map((sheet) => sheet.made));
}

async function continueText() {
  if (notebook.writing || !notebook.sheets.length) return;
  const controller = notebook.writing = new AbortController();
  const prompt = notebook.sheets[0].area.value;
  notebook.history.push(prompt);
  setWriting(true);
  announce('Writing');
  await Promise.all(notebook.sheets.map((sheet) => continueSheet(sheet, prompt, controller.signal)));
  notebook.writing = null;
  notebook.text = notebook.sheets[0].area.value;
  store.write('notebook', notebook.text);
  setWriting(false);
  announce(notebook.sheets.map((sheet) => `${sheet.model.id}: ${sheet.area.value.slice(prompt.length)}`).join('\n'));
}

async function continueSheet(sheet, prompt, signal) {
  const started = performance.now();
  let first = 0, text = '';
  sheet.note.className = '';
  sheet.note.textContent = '';
  sheet.area.hidden = true;
  sheet.odds.hidden = false;
  const made = make('span');
  sheet.odds.replaceChildren(prompt, made);
  const view = new TokenText(made);
  sheet.odds.classList.toggle('shaded', $('shade').checked);
  try {
    const body = { model: sheet.model.id, prompt, stream: true, stream_options: { include_usage: true }, logprobs: 5, ...sampling() };
    for await (const event of events(await call('/v1/completions', body, signal))) {
      const choice = event.choices[0];
      if (event.usage) sheet.note.textContent = speed(event.usage.completion_tokens, started, first);
      if (!choice) continue;
      first ||= performance.now();
      text += choice.text;
      view.add(choice.text, asChatTokens(choice.logprobs));
    }
  } catch (error) {
    sheet.note.textContent = signal.aborted ? 'stopped' : error.message;
    sheet.note.className = signal.aborted ? '' : 'error';
  }
  sheet.area.value = prompt + text;
}

/** Converts the log probabilities of a completion to those of a chat. */
function asChatTokens(logprobs) {
  if (!logprobs) return [];
  const bytesOf = (name) => name.startsWith('bytes:')
    ? name.slice(6).split('\\x').slice(1).map((hex) => parseInt(hex, 16))
    : [...new TextEncoder().encode(name)];
  return logprobs.tokens.map((token, index) => ({
    token,
    bytes: bytesOf(token),
    logprob: logprobs.token_logprobs[index],
    top_logprobs: Object.entries(logprobs.top_logprobs[index] ?? {}).map(([name, logprob]) => ({ token: name, logprob })),
  }));
}

function setWriting(writing) {
  $('continue').hidden = writing;
  $('notebook-stop').hidden = !writing;
  for (const id of ['undo', 'redo']) $(id).disabled = writing || !notebook.history.length;
}

function undo() {
  notebook.text = notebook.history.pop();
  store.write('notebook', notebook.text);
  drawNotebook();
  setWriting(false);
}
$('continue').onclick = continueText;
$('notebook-stop').onclick = () => notebook.writing?.abort();
$('undo').onclick = undo;
$('redo').onclick = () => { undo(); continueText(); };
$('notebook').onkeydown = (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); continueText(); }
  if (event.key === 'Escape') notebook.writing?.abort();
};

/** Shows the chat or the notebook, as the first model needs. */
function showTalk() {
  const chat = isChat();
  $('chat').hidden = !chat;
  $('notebook').hidden = chat;
  $('list').hidden = $('open-list').hidden = !chat;
  $('talk').style.gridTemplateColumns = chat ? '' : 'minmax(0, 1fr) 18rem';
  $('talk').classList.toggle('book', !chat);
  $('system-field').hidden = !chat;
  $('tab-talk').textContent = chat ? 'Chat' : 'Notebook';
  // Two models on one prompt: both chat, or both continue.
  for (const option of $('compare').options) {
    const other = models.find((model) => model.id === option.value);
    option.disabled = Boolean(other) && (other.chat !== chat || option.value === $('model').value);
  }
  if ($('compare').selectedOptions[0]?.disabled) $('compare').value = '';
  if (chat) { if (!current) begin(); draw(); } else { drawNotebook(); setWriting(false); }
}
