// Draws the sweep in data-sweep at the slider's position. Nothing is asked of the server while the slider moves; once
// it rests, the page says where ('click' with a position), for what only the server knows.
const SIDE = {width: 720, height: 300, left: 46, right: 12, top: 12, bottom: 34};
const SECONDS = 2.5;
let sweep = null, at = 0, frame = 0;

const find = (selector) => element.querySelector(selector);
const percent = (value) => (value === null ? '–' : (100 * value).toFixed(1) + ' %');
const safe = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const x = (place) => SIDE.left + (place / Math.max(1, sweep.forget.length - 1)) * (SIDE.width - SIDE.left - SIDE.right);
const y = (value) => SIDE.top + (1 - value) * (SIDE.height - SIDE.top - SIDE.bottom);
const line = (values, places) => values.map((value, i) => `${x(places ? places[i] : i)},${y(value)}`).join(' ');

function plot() {
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const across = ticks.map((t) => `<line class="grid" x1="${SIDE.left}" x2="${SIDE.width - SIDE.right}" y1="${y(t)}" y2="${y(t)}"/>
    <text x="${SIDE.left - 6}" y="${y(t) + 4}" text-anchor="end">${100 * t}</text>`).join('');
  const last = sweep.forget.length - 1;
  const along = ticks.map((t) => Math.round(t * last)).map((place) =>
    `<text x="${x(place)}" y="${SIDE.height - 14}" text-anchor="${place === last ? 'end' : 'middle'}">${safe(sweep.labels[place])}</text>`).join('');
  const levels = (name, pair) => ['forget', 'retain'].map((side, i) =>
    `<line class="${side} ${name}" x1="${SIDE.left}" x2="${SIDE.width - SIDE.right}" y1="${y(pair[i])}" y2="${y(pair[i])}"/>`).join('');
  return `<svg class="sod-dose" viewBox="0 0 ${SIDE.width} ${SIDE.height}" role="img"
      aria-label="accuracy in percent against the dose; the figures at the slider stand above">${across}${along}
    ${levels('retrained', sweep.retrained)}
    <polyline class="retain random" points="${line(sweep.random.retain, sweep.random.at)}"/>
    <polyline class="forget random" points="${line(sweep.random.forget, sweep.random.at)}"/>
    <polyline class="retain" points="${line(sweep.retain)}"/><polyline class="forget" points="${line(sweep.forget)}"/>
    <line class="now" y1="${SIDE.top}" y2="${SIDE.height - SIDE.bottom}"/>
    <circle class="retain" r="6"/><circle class="forget" r="7"/></svg>`;
}

function grid() {
  const styles = [...sweep.styles, 'all'];
  const head = styles.map((name) => `<th scope="col">${safe(name)}</th>`).join('');
  const rows = sweep.classes.map((name, row) => `<tr class="${sweep.mine.includes(row) ? 'mine' : ''}">
    <th scope="row">${safe(name)}</th>${styles.map(() => '<td></td>').join('')}</tr>`).join('');
  return `<table class="sod-cells"><caption>Right, in percent: class by style</caption>
    <thead><tr><th></th>${head}</tr></thead><tbody>${rows}</tbody></table>`;
}

function called() {
  const rows = sweep.classes.map((name, row) => `<tr class="${sweep.mine.includes(row) ? 'mine' : ''}">
    <th scope="row">${safe(name)}</th><td><i></i></td><td></td></tr>`).join('');
  return `<table class="sod-called"><caption>What images of ${safe(sweep.title)} are called</caption><tbody>${rows}</tbody></table>`;
}

function render() {
  const place = find('.sod-mask');
  cancelAnimationFrame(frame);
  if (!place) { sweep = null; return; }
  const before = sweep && sweep.key;
  sweep = JSON.parse(place.dataset.sweep);
  if (before !== sweep.key) at = sweep.at;
  place.innerHTML = `<div class="sod-tiles">
      <div class="sod-tile forget"><b></b><span>of ${safe(sweep.title)} still named</span><small></small></div>
      <div class="sod-tile retain"><b></b><span>of all other images right</span><small></small></div></div>
    <label class="sod-slide">dose: <output></output>
      <input type="range" min="0" max="${sweep.forget.length - 1}" step="1" aria-label="dose"></label>
    <div class="sod-acts"><button type="button" data-act="play">Play</button>
      <button type="button" data-act="unmask">Unmask</button>
      <button type="button" data-act="goal">Smallest dose that forgets</button></div>
    ${plot()}
    <p class="sod-key"><span class="forget">${safe(sweep.title)}</span><span class="retain">all others</span>
      <span class="random">random pairs, as many</span><span class="retrained">retrained without it: ${percent(sweep.retrained[0])}, others ${percent(sweep.retrained[1])}</span>
      <span>its logit at minus infinity, nothing masked: ${percent(sweep.logit[0])}, others ${percent(sweep.logit[1])}</span></p>
    <div class="sod-tables">${sweep.styles.length ? grid() : ''}${called()}</div>`;
  show(Math.min(at, sweep.forget.length - 1));
}

function near(values) {  // random masks are drawn at some positions only: the nearest of them
  return values[sweep.random.at.reduce((best, place, i) =>
    Math.abs(place - at) < Math.abs(sweep.random.at[best] - at) ? i : best, 0)];
}

function show(position) {
  at = position;
  const forget = sweep.forget[at], retain = sweep.retain[at];
  find('.sod-tile.forget b').textContent = percent(forget);
  find('.sod-tile.retain b').textContent = percent(retain);
  find('.sod-tile.forget small').textContent = `as many random pairs: ${percent(near(sweep.random.forget))}`;
  find('.sod-tile.retain small').textContent = `untouched: ${percent(sweep.retain[0])}`;
  const silent = sweep.abstained[at] ? `; ${percent(sweep.abstained[at])} of the codebooks have nothing left to say` : '';
  const dose = `${sweep.labels[at]} ${sweep.unit}; ${sweep.pairs[at]} pairs, ${percent(sweep.pairs[at] / sweep.inUse)} of all${silent}`;
  find('output').textContent = dose;
  const range = find('input[type=range]');
  range.value = at;
  range.setAttribute('aria-valuetext', `${dose}; ${sweep.title} ${percent(forget)}, others ${percent(retain)}`);
  for (const [selector, value] of [['circle.forget', forget], ['circle.retain', retain]]) {
    find(selector).setAttribute('cx', x(at));
    find(selector).setAttribute('cy', y(value));
  }
  find('line.now').setAttribute('x1', x(at));
  find('line.now').setAttribute('x2', x(at));
  element.querySelectorAll('.sod-cells tbody tr').forEach((row, i) => {
    const cells = [...sweep.cells[at][i], sweep.byClass[at][i]];
    row.querySelectorAll('td').forEach((cell, j) => {
      const value = cells[j];
      cell.textContent = value === null ? '–' : Math.round(100 * value);
      cell.style.setProperty('--share', `${Math.round(70 * (value || 0))}%`);
    });
  });
  element.querySelectorAll('.sod-called tbody tr').forEach((row, i) => {
    const value = sweep.called[at][i];
    row.querySelector('i').style.width = `${100 * value}%`;
    row.querySelector('td:last-child').textContent = value ? percent(value) : '';
  });
}

function settle() { trigger('click', {position: at}); }

function play() {
  cancelAnimationFrame(frame);
  const end = sweep.start || sweep.forget.length - 1, started = performance.now();
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const step = (now) => {
    const share = still ? 1 : Math.min(1, (now - started) / (1000 * SECONDS));
    show(Math.round(share * end));
    if (share < 1) frame = requestAnimationFrame(step); else settle();
  };
  frame = requestAnimationFrame(step);
}

element.addEventListener('input', (event) => {
  if (!event.target.matches('input[type=range]')) return;
  cancelAnimationFrame(frame);
  show(Number(event.target.value));
});
element.addEventListener('change', (event) => { if (event.target.matches('input[type=range]')) settle(); });
element.addEventListener('click', (event) => {
  const act = event.target.closest('[data-act]');
  if (!act || !sweep) return;
  if (act.dataset.act === 'play') return play();
  cancelAnimationFrame(frame);
  show(act.dataset.act === 'unmask' ? 0 : sweep.start);
  settle();
});
watch('value', render);
render();
