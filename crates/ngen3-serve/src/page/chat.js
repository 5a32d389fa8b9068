// Chat: conversations, each a list of turns. A turn of the assistant has an answer of each model that was asked.

let conversations = store.read('conversations', []);
let current = conversations[0];
/** The answers being written, as an AbortController; null if none is. */
let writing = null;

function keep() { store.write('conversations', conversations.slice(0, 100)); }

function begin() {
  if (current && !current.turns.length) return;
  current = { id: Date.now(), turns: [] };
  conversations.unshift(current);
  keep();
}

function titleOf(conversation) {
  return conversation.turns.find((turn) => turn.role === 'user')?.text.trim().slice(0, 60) || 'New conversation';
}

function drawList() {
  const item = (conversation) => {
    const title = titleOf(conversation);
    const open = make('button', { 'aria-current': conversation === current && 'true', onclick: () => { stop(); current = conversation; draw(); } }, title);
    const remove = make('button', { class: 'quiet', 'aria-label': 'Delete ' + title, onclick: () => {
      if (conversation === current) stop();
      conversations = conversations.filter((other) => other !== conversation);
      if (conversation === current) current = conversations[0];
      if (!current) begin();
      keep();
      draw();
    } }, '✕');
    return make('li', {}, open, remove);
  };
  $('conversations').replaceChildren(...conversations.map(item));
}

function draw() {
  drawList();
  const turns = current.turns.map((turn, index) => turn.role === 'user' ? drawUser(turn, index) : drawAnswers(turn, index));
  const empty = make('div', { class: 'empty' }, make('h2', {}, 'Ask ' + ($('model').value || 'a model')), make('p', {}, 'Everything stays on this machine.'));
  $('turns').classList.toggle('two', current.turns.some((turn) => turn.answers?.length > 1));
  $('turns').replaceChildren(...(turns.length ? turns : [empty]));
  $('turns').scrollTop = $('turns').scrollHeight;
}

function drawUser(turn, index) {
  const text = make('div', { class: 'text' }, turn.text);
  const edit = make('button', { class: 'quiet', 'aria-label': 'Edit message ' + (index / 2 + 1), onclick: () => {
    stop();
    const area = make('textarea', { class: 'text', 'aria-label': 'Message', rows: 3, style: 'width:100%' });
    area.value = turn.text;
    const done = make('button', { class: 'main', onclick: () => {
      if (!area.value.trim()) return;
      current.turns = current.turns.slice(0, index);
      ask(area.value);
    } }, 'Send');
    area.onkeydown = (event) => {
      if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); done.click(); }
      if (event.key === 'Escape') draw();
    };
    section.replaceChildren(make('h2', {}, 'You'), area, make('div', { class: 'under' }, done, make('button', { class: 'quiet', onclick: draw }, 'Cancel')));
    area.focus();
  } }, 'Edit');
  const section = make('section', { class: 'turn user' }, make('h2', {}, 'You'), text, make('div', { class: 'under' }, make('span'), edit));
  return section;
}

function drawAnswers(turn, index) {
  const box = make('div', { class: 'answers' });
  for (const answer of turn.answers) {
    const text = make('div', { class: 'text' });
    const note = make('span', {}, answer.note ?? '');
    if (answer.error) { text.textContent = answer.error; text.classList.add('error'); } else {
      answer._view = new TokenText(text);
      answer._view.add(answer.text, answer._tokens ?? []);
      answer._view.draw();
    }
    const under = make('div', { class: 'under' }, note);
    if (!writing && index === current.turns.length - 1) {
      under.append(make('button', { class: 'quiet', onclick: () => { current.turns.pop(); answerLast(); } }, 'Regenerate'));
    }
    if (!writing) under.append(make('button', { class: 'quiet', onclick: () => navigator.clipboard.writeText(answer.text).then(() => announce('Copied')) }, 'Copy'));
    box.append(make('section', { class: 'turn' }, make('h2', {}, answer.model), text, under));
  }
  return box;
}

function ask(text) {
  current.turns.push({ role: 'user', text });
  conversations = [current, ...conversations.filter((other) => other !== current)];
  answerLast();
}

/** Asks each chosen model for an answer to the last turn. */
async function answerLast() {
  const controller = writing = new AbortController();
  const conversation = current;
  const asked = chosenModels();
  const turn = { role: 'assistant', answers: asked.map((model) => ({ model: model.id, text: '' })) };
  const before = [...conversation.turns];
  conversation.turns.push(turn);
  $('send').hidden = true;
  $('stop').hidden = false;
  draw();
  announce('Answering');
  await Promise.all(turn.answers.map((answer, index) => write(answer, index, before, controller.signal)));
  keep();
  if (writing !== controller) return;
  writing = null;
  $('send').hidden = false;
  $('stop').hidden = true;
  if (conversation === current) draw();
  announce(turn.answers.map((answer) => `${answer.model}: ${answer.error ?? answer.text}`).join('\n'));
}

/** Streams one answer. A model sees its own earlier answers. */
async function write(answer, index, before, signal) {
  const messages = $('system').value.trim() ? [{ role: 'system', content: $('system').value }] : [];
  for (const turn of before) {
    if (turn.role === 'user') { messages.push({ role: 'user', content: turn.text }); continue; }
    const own = turn.answers.find((other) => other.model === answer.model) ?? turn.answers[index] ?? turn.answers[0];
    // A template renders no empty turn.
    messages.push({ role: 'assistant', content: own.text || '…' });
  }
  const started = performance.now();
  let first = 0;
  answer._tokens = [];
  try {
    const body = { model: answer.model, messages, stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 5, ...sampling() };
    const response = await call('/v1/chat/completions', body, signal);
    for await (const event of events(response)) {
      const choice = event.choices[0];
      if (event.usage) answer.note = speed(event.usage.completion_tokens, started, first);
      if (choice?.finish_reason === 'length') answer.cut = true;
      if (!choice?.delta?.content && !choice?.logprobs) continue;
      first ||= performance.now();
      answer.text += choice.delta.content ?? '';
      const tokens = choice.logprobs?.content ?? [];
      answer._tokens.push(...tokens);
      answer._view?.add(choice.delta.content ?? '', tokens);
    }
    if (answer.cut) answer.note += ' · cut at the limit';
  } catch (error) {
    if (signal.aborted) answer.note = 'stopped';
    else answer.error = error.message;
  }
}

function speed(tokens, started, first) {
  const now = performance.now();
  const rate = (1000 * tokens / (now - started)).toFixed(1);
  return `${count.format(tokens)} tokens · ${rate} tokens/s · first after ${Math.round((first || now) - started)} ms`;
}

function stop() {
  writing?.abort();
  writing = null;
  $('send').hidden = false;
  $('stop').hidden = true;
}

$('compose').onsubmit = (event) => {
  event.preventDefault();
  const text = $('message').value;
  if (!text.trim() || writing || !chosenModels().length) return;
  $('message').value = '';
  $('message').style.height = '';
  ask(text);
};
$('message').onkeydown = (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); $('compose').requestSubmit(); }
};
$('message').oninput = () => {
  $('message').style.height = 'auto';
  $('message').style.height = $('message').scrollHeight + 2 + 'px';
};
$('stop').onclick = () => { writing?.abort(); $('message').focus(); };
document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && writing) writing.abort(); });
$('new').onclick = () => { stop(); begin(); draw(); $('message').focus(); };
