'use strict';
// What all views share: elements, storage, the server's API, tabs and colours.

const $ = (id) => document.getElementById(id);

/** Makes an element: make('p', {class: 'x', onclick: f}, 'text', child, …). */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith('on')) element[key] = value;
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

const store = {
  read(name, otherwise) {
    try { return JSON.parse(localStorage.getItem('ngen3.' + name)) ?? otherwise; } catch { return otherwise; }
  },
  /** Keys that begin with _ stay in memory. */
  write(name, value) {
    const text = JSON.stringify(value, (key, part) => key.startsWith('_') ? undefined : part);
    try { localStorage.setItem('ngen3.' + name, text); } catch { announce('The browser has no room to keep this conversation.'); }
  },
};

/** Says something to screen readers. */
function announce(text) { $('announce').textContent = text; }

let apiKey = store.read('key', '');

/** Asks for the key; resolves once it is entered. */
function askForKey() {
  return new Promise((resolve) => {
    const dialog = $('ask-key');
    dialog.onclose = () => { apiKey = $('key').value.trim(); store.write('key', apiKey); resolve(); };
    if (!dialog.open) dialog.showModal();
  });
}

/** Calls the server; throws an Error with its message. */
async function call(path, body, signal) {
  for (;;) {
    const headers = { 'content-type': 'application/json' };
    if (apiKey) headers.authorization = 'Bearer ' + apiKey;
    const request = body ? { method: 'POST', body: JSON.stringify(body), headers, signal } : { headers, signal };
    const response = await fetch(path, request);
    if (response.ok) return response;
    if (response.status === 401) { await askForKey(); continue; }
    const error = await response.json().catch(() => null);
    throw new Error(error?.error?.message ?? 'The server answered with status ' + response.status);
  }
}

/** Yields the objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split('\n\n');
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6)).join('\n');
      if (data === '[DONE]') return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const count = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

// Colours: automatic, light, dark.
const themes = ['Auto', 'Light', 'Dark'];
function setTheme(theme) {
  $('theme').textContent = theme;
  $('theme').setAttribute('aria-label', 'Colour theme: ' + theme.toLowerCase());
  if (theme === 'Auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.toLowerCase();
  store.write('theme', theme);
}
setTheme(store.read('theme', 'Auto'));
$('theme').onclick = () => setTheme(themes[(themes.indexOf($('theme').textContent) + 1) % themes.length]);

// Tabs: arrow keys move between them.
const tabs = [...document.querySelectorAll('[role="tab"]')];
const onShow = {};
function show(tab) {
  for (const other of tabs) {
    const selected = other === tab;
    other.setAttribute('aria-selected', selected);
    other.tabIndex = selected ? 0 : -1;
    $(other.getAttribute('aria-controls')).hidden = !selected;
  }
  for (const id of ['open-list', 'open-settings']) $(id).hidden = tab.id !== 'tab-talk';
  history.replaceState(null, '', tab.id === 'tab-runs' ? '#runs' : '#');
  onShow[tab.id]?.();
}
for (const tab of tabs) {
  tab.onclick = () => show(tab);
  tab.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  };
}

// Drawers on narrow screens.
for (const name of ['list', 'settings']) {
  const button = $('open-' + name);
  const set = (open) => { $(name).classList.toggle('open', open); button.setAttribute('aria-expanded', open); };
  button.onclick = () => set(!$(name).classList.contains('open'));
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') set(false); });
  document.addEventListener('pointerdown', (event) => {
    if (!$(name).contains(event.target) && event.target !== button) set(false);
  });
}
