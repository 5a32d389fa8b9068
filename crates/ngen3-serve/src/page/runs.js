// Runs: curves of the metrics of training runs, read again every two seconds while the view is open.

const POLL_MS = 2000;
/** The list of runs is read every so many times: the server searches the folder for it. */
const LIST_EVERY = 5;
/** A run without news for longer is not going on. */
const LIVE_S = 60;
/** Texts shown of a run. */
const MOST_SAMPLES = 50;
const COLOURS = ['#0d9488', '#d9730d', '#7c5cff', '#d6336c', '#3b82f6', '#8a9a00', '#b45309', '#64748b'];
const CHARTS = [
  { title: 'Bits per byte, validation', keys: ['val_bpb'], digits: 3 },
  { title: 'Loss, nats per token', keys: ['train_loss', 'val_loss'], digits: 3 },
  { title: 'Learning rate', keys: ['lr'], digits: 6 },
  { title: 'Tokens per second', keys: ['tokens_per_s'], digits: 0 },
  { title: 'Gradient norm', keys: ['grad_norm'], digits: 2 },
  { title: 'Memory, GiB', keys: ['memory_gib'], digits: 2 },
];
/** Runs by name, with their lines so far. */
const known = new Map();
let polling = null;
let polls = 0;

const chosenRuns = () => [...known.values()].filter((run) => run.chosen);

/** Looks for new metrics, and every few times for new runs. */
async function poll() {
  try {
    if (polls++ % LIST_EVERY === 0) await listRuns();
    await Promise.all(chosenRuns().map(readRun));
    drawRunList();
    drawBoards();
    $('runs-note').textContent = known.size ? '' : 'No runs yet: train writes one beside its model, as NAME_model.run.';
  } catch (error) {
    $('runs-note').textContent = error.message;
  }
}

async function listRuns() {
  const { root, runs } = await (await call('/runs')).json();
  $('runs-root').textContent = root;
  for (const found of runs) {
    const run = known.get(found.name) ?? { lines: [], offset: 0, texts: { lines: [], offset: 0 }, colour: COLOURS[known.size % COLOURS.length], chosen: known.size < 2 };
    known.set(found.name, Object.assign(run, found));
  }
  for (const name of known.keys()) if (!runs.some((run) => run.name === name)) known.delete(name);
}

/** Reads the metrics and the samples that were added since the last time. */
async function readRun(run) {
  const before = run.offset;
  await readLines('metrics', run.name, run);
  if (before && run.offset !== before) run.modified = Date.now() / 1000;
  run.last = run.lines.at(-1) ?? run.last;
  if (!run.samples) run.texts = { lines: [], offset: 0 };
  else if (run.samples !== run.texts.offset) {
    // The file may have gone since the runs were listed, if a run was started anew: the other runs are drawn all the same.
    await readLines('samples', run.name, run.texts).catch(() => { run.texts = { lines: [], offset: 0 }; });
  }
}

async function readLines(kind, name, kept) {
  for (;;) {
    const query = new URLSearchParams({ run: name, offset: kept.offset });
    const { lines, offset, restarted } = await (await call(`/runs/${kind}?` + query)).json();
    if (restarted) kept.lines = [];
    for (const line of lines) {
      // A resumed run writes the steps since its last save again.
      while (kept.lines.length && kept.lines.at(-1).step >= line.step) kept.lines.pop();
      kept.lines.push(line);
    }
    if (offset === kept.offset) return;
    kept.offset = offset;
  }
}

function isLive(run) {
  return Date.now() / 1000 - run.modified < LIVE_S && !(run.last?.step >= run.settings?.max_iters);
}

function drawRunList() {
  const runs = [...known.values()].sort((a, b) => b.modified - a.modified);
  const item = (run) => {
    const box = make('input', { type: 'checkbox', checked: run.chosen, onchange: () => { run.chosen = box.checked; poll(); } });
    const last = run.last ?? {};
    const facts = [last.step !== undefined && `step ${count.format(last.step)}`, last.val_bpb && `${last.val_bpb.toFixed(3)} bits/byte`,
      !last.val_bpb && last.train_loss && `loss ${last.train_loss.toFixed(3)}`, isLive(run) || ago(run.modified)].filter((fact) => typeof fact === 'string');
    const label = make('label', { style: `--run:${run.colour}` }, box, make('b', {}, run.name.replace(/(_model)?\.run$/, '')),
      make('small', { class: isLive(run) && 'live' }, (isLive(run) ? 'training · ' : '') + facts.join(' · ')));
    return make('li', {}, label);
  };
  const focused = [...$('run-items').querySelectorAll('input')].indexOf(document.activeElement);
  $('run-items').replaceChildren(...runs.map(item));
  if (focused >= 0) $('run-items').querySelectorAll('input')[focused]?.focus();
}

function ago(time) {
  const minutes = (Date.now() / 1000 - time) / 60;
  if (minutes < 60) return `${Math.round(minutes)} min ago`;
  return minutes < 2880 ? `${Math.round(minutes / 60)} h ago` : `${Math.round(minutes / 1440)} days ago`;
}

/** Returns the points of a metric, [x, y]. */
function points(run, key) {
  const axis = $('axis').value;
  const perStep = (run.settings?.batch_size ?? 1) * (run.settings?.grad_accum ?? 1) * (run.config?.block_size ?? 1);
  const x = { step: (line) => line.step, elapsed_s: (line) => line.elapsed_s / 3600, tokens: (line) => line.step * perStep }[axis];
  return run.lines.filter((line) => Number.isFinite(line[key])).map((line) => [x(line), line[key]]);
}

/** Averages neighbours down to at most 400 points. */
function thinned(line) {
  const size = Math.ceil(line.length / 400);
  if (size < 2) return line;
  const out = [];
  for (let at = 0; at < line.length; at += size) {
    const group = line.slice(at, at + size);
    out.push([0, 1].map((axis) => group.reduce((sum, point) => sum + point[axis], 0) / group.length));
  }
  return out;
}

/** Smooths with an exponential mean whose weight is that of about 1/30 of the curve. */
function smoothed(line) {
  const weight = Math.min(1, 30 / Math.max(30, line.length));
  let mean = line[0]?.[1];
  return line.map(([x, y]) => [x, (mean += weight * (y - mean))]);
}

function drawBoards() {
  const runs = chosenRuns();
  const charts = CHARTS.map((chart) => {
    const curves = runs.flatMap((run) => chart.keys.map((key) => {
      const raw = points(run, key);
      const noisy = !key.startsWith('val_') && key !== 'lr';
      return { run, key, line: thinned($('smooth').checked && noisy ? smoothed(raw) : raw), last: raw.at(-1)?.[1] };
    })).filter((curve) => curve.line.length);
    return curves.length ? { chart, curves } : null;
  }).filter(Boolean).map(({ chart, curves }, index) => drawChart(chart, curves, sizeOf(index)));
  $('charts').replaceChildren(...charts);
  drawSamples(runs);
  drawSettings(runs);
}

/** Shows the texts that the runs wrote, the latest first; the latest of each run is open. */
function drawSamples(runs) {
  const box = $('samples');
  const written = runs.filter((run) => run.texts.lines.length);
  const shown = JSON.stringify(written.map((run) => [run.name, run.texts.lines.length, run.texts.lines.at(-1).step]));
  box.hidden = !written.length;
  if (box.dataset.shown === shown) return;
  box.dataset.shown = shown;
  const text = ({ step, text }, index) => make('details', { open: index === 0 }, make('summary', {}, `step ${count.format(step)}`), make('p', {}, text));
  const list = (run) => make('section', { 'aria-label': `Samples of ${run.name}` },
    make('h3', { style: `--run:${run.colour}` }, make('span', { class: 'swatch' }), run.name.replace(/(_model)?\.run$/, '')),
    ...run.texts.lines.slice(-MOST_SAMPLES).reverse().map(text));
  box.replaceChildren(make('h2', {}, 'Samples'), make('div', {}, ...written.map(list)));
}

const LEFT = 52, RIGHT = 10, TOP = 12, BOTTOM = 26;

/** Width and height of a chart in pixels, so that its text keeps its size. The first takes a row. */
function sizeOf(index) {
  const room = $('charts').clientWidth, gap = 16, least = 26 * 16, padding = 32;
  const columns = index ? Math.max(1, Math.floor((room + gap) / (least + gap))) : 1;
  return [Math.max(240, (room + gap) / columns - gap - padding), index ? 190 : 260];
}

function svg(name, attributes, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Round numbers between two values, about `wanted` of them. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((tick) => tick >= rough);
  const out = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-6; n++) out.push(n * step);
  return out;
}

function drawChart({ title, digits }, curves, [WIDTH, HEIGHT]) {
  const all = curves.flatMap((curve) => curve.line);
  const range = (axis) => [Math.min(...all.map((point) => point[axis])), Math.max(...all.map((point) => point[axis]))];
  let [[x0, x1], [y0, y1]] = [range(0), range(1)];
  if (x0 === x1) x1 = x0 + 1;
  const margin = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 1;
  [y0, y1] = [y0 >= 0 ? Math.max(0, y0 - margin) : y0 - margin, y1 + margin];
  const px = (x) => LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const said = curves.map((curve) => `${curve.run.name} ${curve.key}: ${number(curve.last, digits)}`).join('; ');
  const picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${title}. Last values: ${said}` });
  for (const y of ticks(y0, y1, 4)) {
    picture.append(svg('line', { class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }));
    picture.append(svg('text', { x: LEFT - 6, y: py(y) + 4, 'text-anchor': 'end' }, short.format(y)));
  }
  for (const x of ticks(x0, x1, WIDTH / 90)) picture.append(svg('text', { x: px(x), y: HEIGHT - 8, 'text-anchor': 'middle' }, short.format(x)));
  for (const { run, key, line } of curves) {
    const d = line.map(([x, y], index) => `${index ? 'L' : 'M'}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join('');
    const dash = key.startsWith('val_') && curves.some((other) => other.key !== key) ? '6 4' : 'none';
    picture.append(svg('path', { d, fill: 'none', stroke: run.colour, 'stroke-width': 2, 'stroke-dasharray': dash, 'stroke-linejoin': 'round' }));
    if (line.length === 1) picture.append(svg('circle', { cx: px(line[0][0]), cy: py(line[0][1]), r: 3, fill: run.colour }));
  }
  const cross = svg('line', { class: 'cross', y1: TOP, y2: HEIGHT - BOTTOM, visibility: 'hidden' });
  picture.append(cross);
  const readout = make('span', {}, readings(curves, Infinity, digits));
  picture.onpointermove = (event) => {
    const box = picture.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x1 - x0);
    for (const end of ['x1', 'x2']) cross.setAttribute(end, px(Math.max(x0, Math.min(x1, x))));
    cross.setAttribute('visibility', 'visible');
    readout.replaceChildren(readings(curves, x, digits));
  };
  picture.onpointerleave = () => { cross.setAttribute('visibility', 'hidden'); readout.replaceChildren(readings(curves, Infinity, digits)); };
  return make('figure', {}, make('figcaption', {}, title, readout), picture);
}

/** The value of each curve at a place. */
function readings(curves, x, digits) {
  const out = document.createDocumentFragment();
  for (const { run, key, line } of curves) {
    const at = line.findLast((point) => point[0] <= x) ?? line[0];
    out.append(make('span', { class: 'swatch', style: `--run:${run.colour}`, title: `${run.name} ${key}` }), (key.startsWith('val_') ? 'val ' : '') + number(at[1], digits) + '  ');
  }
  return out;
}

function number(value, digits) { return digits ? Number(value).toFixed(digits) : count.format(value); }

/** Flattens {a: {b: 1}} to {'a.b': 1}. */
function flat(value, prefix = '') {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return { [prefix]: JSON.stringify(value ?? null) };
  return Object.assign({}, ...Object.entries(value).map(([key, part]) => flat(part, prefix ? `${prefix}.${key}` : key)));
}

/** Lists the settings in which the chosen runs differ; of one run, all. */
function drawSettings(runs) {
  const known = runs.filter((run) => run.settings);
  const table = $('settings-table');
  table.hidden = !known.length;
  if (!known.length) return;
  const all = known.map((run) => flat({ kind: run.kind, ...run.settings, model: run.config, data: run.data }));
  const names = [...new Set(all.flatMap(Object.keys))];
  const rows = names.filter((name) => known.length === 1 || new Set(all.map((settings) => settings[name])).size > 1);
  const shown = (text) => (text ?? '—').replace(/^"|"$/g, '').slice(0, 60);
  const head = known.map((run) => make('th', { scope: 'col' }, make('span', { class: 'swatch', style: `--run:${run.colour}` }), run.name.replace(/(_model)?\.run$/, '')));
  const body = rows.map((name) => make('tr', {}, make('th', { scope: 'row' }, name), ...all.map((settings) => make('td', {}, shown(settings[name])))));
  if (!body.length) body.push(make('tr', {}, make('td', {}, 'none')));
  const title = known.length === 1 ? 'Settings' : 'Settings that differ';
  const scrolled = table.scrollLeft;
  table.replaceChildren(make('table', {}, make('caption', {}, title), make('thead', {}, make('tr', {}, make('td', {}), ...head)), make('tbody', {}, ...body)));
  table.scrollLeft = scrolled;
}

for (const id of ['axis', 'smooth']) $(id).onchange = drawBoards;
onShow['tab-runs'] = () => {
  if (polling) return;
  poll();
  polling = setInterval(() => { if (!$('runs').hidden && !document.hidden) poll(); }, POLL_MS);
};
