// Tokens of an answer as spans, with their probabilities on hover and by arrow keys.

/** A text that grows in an element, with a span for each token. Draws at most once per frame, and only what is new. */
class TokenText {
  constructor(element) {
    Object.assign(this, { element, text: '', tokens: [], at: 0, next: 0, bytes: [], rest: document.createTextNode(''), waiting: false });
    element.replaceChildren(this.rest);
    prepare(element);
  }

  add(text, tokens) {
    this.text += text;
    this.tokens.push(...tokens);
    if (!this.waiting) requestAnimationFrame(() => this.draw());
    this.waiting = true;
  }

  draw() {
    this.waiting = false;
    const made = document.createDocumentFragment();
    for (; this.next < this.tokens.length; this.next++) {
      const token = this.tokens[this.next];
      // Bytes of a character that several tokens share are shown with the last of them.
      this.bytes.push(...token.bytes);
      const piece = new TextDecoder().decode(new Uint8Array(this.bytes));
      const matches = this.text.startsWith(piece, this.at);
      if (piece.endsWith('\ufffd') && !matches) continue;
      const shown = matches ? piece : this.text.slice(this.at, this.at + piece.length);
      this.at += shown.length;
      this.bytes = [];
      const span = make('span', { class: 'token' }, shown);
      span.style.setProperty('--doubt', (1 - Math.exp(token.logprob)).toFixed(3));
      span._token = token;
      made.append(span);
    }
    const box = this.element.closest('#turns') ?? this.element.closest('.text');
    const atEnd = !box || box.scrollHeight - box.scrollTop - box.clientHeight < 80;
    this.rest.before(made);
    this.rest.data = this.text.slice(this.at);
    if (box && atEnd) box.scrollTop = box.scrollHeight;
  }
}

/** Shows probabilities of the tokens in an element. */
function prepare(element) {
  element.classList.toggle('shaded', $('shade').checked);
  element.tabIndex = 0;
  element.setAttribute('aria-description', 'Arrow keys read the probability of each token');
  element.onpointerover = (event) => event.target._token && showOdds(event.target);
  element.onpointerleave = hideOdds;
  element.onblur = hideOdds;
  element.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...element.querySelectorAll('.token')];
    const next = all[Math.min(all.length - 1, Math.max(0, all.findIndex((span) => span.classList.contains('current')) + step))];
    showOdds(next);
    announce(`${next.textContent}, ${percent(next._token.logprob)}`);
  };
}

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return (share >= 10 ? share.toFixed(0) : share.toPrecision(2)) + ' %';
};
const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');

function showOdds(span) {
  hideOdds();
  span.classList.add('current');
  const { token, logprob, top_logprobs: top } = span._token;
  const others = top.filter((other) => other.token !== token);
  const row = (name, value, own) => make('tr', { class: own && 'own' }, make('td', {}, visible(name)), make('td', {}, percent(value)));
  const rows = [row(token, logprob, true), ...others.map((other) => row(other.token, other.logprob, false))];
  const box = $('odds');
  box.replaceChildren(make('table', {}, make('tbody', {}, ...rows)));
  box.hidden = false;
  const at = span.getBoundingClientRect();
  const below = at.bottom + box.offsetHeight + 12 < innerHeight;
  box.style.top = (below ? at.bottom + 6 : Math.max(4, at.top - box.offsetHeight - 6)) + 'px';
  box.style.left = Math.max(4, Math.min(at.left, innerWidth - box.offsetWidth - 8)) + 'px';
}
function hideOdds() {
  $('odds').hidden = true;
  for (const span of document.querySelectorAll('.token.current')) span.classList.remove('current');
}
$('shade').checked = settings.shade ?? false;
$('shade').onchange = () => {
  settings.shade = $('shade').checked;
  store.write('settings', settings);
  for (const text of document.querySelectorAll('.text')) text.classList.toggle('shaded', settings.shade && Boolean(text.querySelector('.token')));
};
