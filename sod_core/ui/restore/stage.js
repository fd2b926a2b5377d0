// Draws whatever alpha moves out of one answer of the server: bars, heat, the latents of a patch, the curves' marker and
// the sentence that says where one stands. Nothing is asked of the server while the slider moves or Play runs, but for
// an alpha typed between the slider's positions, and as long as the answer has not come. A value between computed
// positions is a straight line's, and marked (class sod-rough) until it is exact.
const PLAY_SECONDS = 4, LAST = 10, STEP = 0.05, HOTTEST = 63;  // of the colour scale's steps, from 0
const PARTS = ['bars', 'heat', 'inspector', 'verdict', 'curves'];
let alpha = 0, sweep = null, series = null, frame = 0, played = false, marker = null;

const part = (id) => document.getElementById(id);
const slider = (kind = 'range') => document.querySelector(`#alpha input[type=${kind}]`);
const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

function read(id, name) {
  const place = part(id) && part(id).querySelector(`[data-${name}]`);
  return place ? JSON.parse(place.dataset[name]) : null;
}

function take() {  // what came last
  sweep = read('sweep', 'sweep');
  series = read('series', 'series');
  if (sweep) Object.assign(sweep, {probabilities: floats(sweep.probabilities), heat: floats(sweep.heat)});
  if (series) series.values = floats(series.values);
  draw();
}

// The row of a table of positions where alpha is, {exact, at(column)}.
function row(values, every, columns) {
  const place = alpha / every, low = Math.floor(place + 1e-6), share = place - low;
  const exact = share < 1e-6, here = low * columns, next = exact ? here : here + columns;
  return {exact, at: (i) => exact ? values[here + i] : (1 - share) * values[here + i] + share * values[next + i]};
}

const set = (element, text) => {  // the text alone: a new node would look like an answer of the server
  if (element.firstChild) { if (element.firstChild.data !== text) element.firstChild.data = text; } else element.textContent = text;
};
const percent = (value) => Number.isFinite(value) ? (100 * value).toFixed(1) : '–';

// Whether the server itself drew this element where alpha is.
const served = (place) => place.dataset.alpha !== 'drawn' && Number(place.dataset.alpha) === alpha;

// Whether the script is to draw it; it says of itself whether it is exact.
function mine(place, found) {
  place.classList.toggle('sod-rough', !found.exact && !served(place));
  if (!found.exact && served(place)) return false;
  place.dataset.alpha = 'drawn';
  return true;
}

const fits = (table) => sweep && sweep.drawn === table.dataset.drawn && sweep.classes === table.dataset.classes;

function drawBars() {
  const table = part('bars').querySelector('.sod-bars');
  if (!table) return;
  if (!fits(table)) return table.classList.toggle('sod-rough', !served(table));
  const bars = table.querySelectorAll('i.restored'), cells = table.querySelectorAll('tr.restored td');
  const found = row(sweep.probabilities, sweep.every, bars.length);
  if (!mine(table, found)) return;
  let forgotten = null;
  for (let i = 0; i < bars.length; i++) {
    const value = found.at(i);
    bars[i].style.transform = `scaleY(${Number.isFinite(value) ? value.toFixed(4) : 0})`;
    set(cells[i], percent(value));
    if (cells[i].classList.contains('mine')) forgotten = value;
  }
  say(forgotten, found.exact);
}

function say(value, exact) {  // "Now: 12% boat." in the verdict
  const walk = document.createTreeWalker(part('verdict'), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (!/Now: /.test(node.data)) continue;
    const text = Number.isFinite(value) ? `${exact ? '' : '≈ '}${(100 * value).toFixed(0)}%` : '–';
    const said = node.data.replace(/Now: (≈ )?[\d–]+%?/, `Now: ${text}`);
    if (said !== node.data) node.data = said;
  }
}

function drawHeat() {
  const panels = part('heat').querySelector('.sod-heats');
  if (!panels || !sweep || sweep.drawn !== panels.dataset.drawn) return;
  const squares = panels.querySelectorAll('[data-model=restored] rect');
  const found = row(sweep.heat, sweep.every, squares.length);
  if (!mine(panels, found)) return;
  let hottest = 0;
  for (let i = 0; i < squares.length; i++) {
    const value = found.at(i), share = Math.min(Math.max(value / sweep.top, 0), 1);
    hottest = Math.max(hottest, value);
    squares[i].setAttribute('fill', `var(--heat-${Math.round(share * HOTTEST)})`);
    squares[i].setAttribute('fill-opacity', share > 0 ? (0.12 + 0.73 * share).toFixed(2) : '0.00');
    set(squares[i].firstElementChild, value.toFixed(2));
  }
  const end = part('heat').querySelector('.sod-bar span:last-child'), above = ' and above';
  set(end, end.textContent.replace(above, '') + (hottest > sweep.top * 1.001 ? above : ''));
}

function drawLatents() {
  const table = part('inspector').querySelector('.sod-latents');
  if (!table || !series || series.drawn !== table.dataset.drawn) return;
  const columns = series.values.length / (1 + Math.round(LAST / series.every));
  const found = row(series.values, series.every, columns);
  if (!mine(table, found)) return;
  table.querySelectorAll('tbody tr').forEach((line, i) => set(line.children[3], found.at(i).toFixed(2)));
}

function drawMarker() {  // over the curves, which Plotly drew
  const plot = part('curves').querySelector('.js-plotly-plot'), layout = plot && plot._fullLayout;
  if (!layout || !layout.xaxis) return;
  if (!marker || marker.plot !== plot || !marker.line.isConnected) {
    const line = document.createElement('div');
    if (marker) marker.line.remove();
    line.className = 'sod-now';
    plot.parentElement.style.position = 'relative';
    plot.parentElement.append(line);
    marker = {plot, line};
    plot.on('plotly_afterplot', () => { marker.placed = ''; drawMarker(); });
  }
  const {xaxis, yaxis} = layout, placed = `${xaxis._offset} ${xaxis._length} ${yaxis._offset} ${yaxis._length}`;
  if (marker.placed !== placed) {
    Object.assign(marker.line.style, {top: `${yaxis._offset}px`, height: `${yaxis._length}px`});
    marker.placed = placed;
  }
  marker.line.dataset.alpha = alpha;
  marker.line.style.transform = `translateX(${xaxis._offset + xaxis.l2p(alpha)}px)`;
}

function draw() {
  if (part('bars')) drawBars();
  if (part('heat')) drawHeat();
  if (part('inspector')) drawLatents();
  if (part('curves')) drawMarker();
}

function moved(to) {
  if (!Number.isFinite(to)) return;
  alpha = Math.min(Math.max(to, 0), LAST);
  draw();
  document.dispatchEvent(new Event('sod-moved'));  // the page's address follows
  const table = part('bars') && part('bars').querySelector('.sod-bars');
  const between = Math.abs(alpha / STEP - Math.round(alpha / STEP)) > 1e-6;
  if (table && !served(table) && (between || !fits(table))) trigger('click', {alpha});  // the server alone knows it
}

// An answer of the server may be drawn for where the slider stood when it was asked.
const observer = new MutationObserver(() => { watchParts(); draw(); });
const watched = new Set();
function watchParts() {
  for (const place of PARTS.map(part)) {
    if (!place || watched.has(place)) continue;
    watched.add(place);
    observer.observe(place, {childList: true, subtree: true});
  }
}

function move(alpha) {  // as a hand on the slider would: Gradio follows
  played = true;
  slider().value = alpha;
  slider().dispatchEvent(new Event('input', {bubbles: true}));
  played = false;
}

function stop() {
  cancelAnimationFrame(frame);
  frame = 0;
  document.body.classList.remove('sod-playing');
}

function play() {
  stop();
  document.body.classList.add('sod-playing');
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches, started = performance.now();
  const step = (now) => {
    const share = still ? 1 : Math.min(1, (now - started) / (1000 * PLAY_SECONDS));
    move((Math.round(share * LAST / STEP) * STEP).toFixed(2));
    if (share < 1) frame = requestAnimationFrame(step); else stop();
  };
  frame = requestAnimationFrame(step);
}

document.addEventListener('input', (event) => {
  if (!event.target.closest('#alpha')) return;
  if (!played) stop();  // a hand on the slider ends Play
  if (event.target.type === 'range') moved(Number(event.target.value));
});
document.addEventListener('click', (event) => {
  if (event.target.closest('#play')) play();
  if (event.target.closest('#stop')) stop();
});
window.sodMoved = (to) => {  // whatever else changed the slider: its number, its reset button, the server
  if (to !== null && Number(to) !== alpha) moved(Number(to));
};
watch('value', take);
new MutationObserver(take).observe(part('series'), {childList: true, subtree: true});
watchParts();
moved(Number((slider('number') || slider() || {value: 0}).value));
take();
