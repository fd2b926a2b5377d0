// The whole page's script: its address follows what is shown (the server says how: data-link), alpha and the dose are
// added here, since they move without the server. Keys, and the mode for the stage, in which the figure fills the screen.
const TABS = ['restore', 'scoreboard', 'atlas', 'erase', 'clamp', 'mask'];
const SLIDERS = {restore: '#alpha input[type=range]', mask: '#mask-stage input[type=range]'};
const REST = 300;  // milliseconds after which a moved slider is written: browsers bound how often an address may change
let waiting = 0, written = null;

// Where a page has a base, Plotly names its clipping paths by the whole address: after a change of the address browsers
// would ask the server for them. This base changes nothing else: it is the folder that relative addresses start from anyway.
const base = document.querySelector('base[href="./"]');
if (base) base.remove();

const one = (selector) => document.querySelector(selector);
const buttons = () => Array.from(document.querySelectorAll('[role=tablist] [role=tab]'));
const named = (button) => button.innerText.trim().toLowerCase();
const shown = () => { const chosen = buttons().find((b) => b.ariaSelected === 'true'); return chosen ? named(chosen) : TABS[0]; };
const slider = () => SLIDERS[shown()] ? one(SLIDERS[shown()]) : null;
const place = () => one(`[data-link="${shown() === 'scoreboard' ? 'restore' : shown()}"]`);

function query() {
  const found = new URLSearchParams(), tab = shown(), at = place();
  for (const [key, value] of new URLSearchParams(location.search)) if (key.startsWith('__')) found.set(key, value);  // Gradio's
  if (tab !== TABS[0]) found.set('tab', tab);
  if (scale !== known[0]) found.set('heat', scale);
  for (const [key, value] of Object.entries(at ? JSON.parse(at.dataset.values) : {})) found.set(key, value);
  const alpha = one('#alpha input[type=number]');
  if (at && at.dataset.link === 'restore' && alpha) found.set('alpha', alpha.value);
  const dose = one(SLIDERS.mask);
  if (at && tab === 'mask' && dose) found.set('dose', dose.value);
  return '?' + found.toString().replaceAll('%2C', ',').replaceAll('%3B', ';');
}

function write() {
  clearTimeout(waiting);
  waiting = 0;
  name();
  if (!one('[data-link="restore"]')) return;  // what the address asks for is not shown yet
  const asks = new URLSearchParams(location.search).get('tab') ?? TABS[0];
  if (!place() && asks === shown()) return;  // nor is it in this tab, which fills later
  const now = query();
  if (now === written) return;
  written = now;
  history.replaceState(history.state, '', now);
  if (window.parent !== window) window.parent.postMessage({queryString: now.slice(1)}, 'https://huggingface.co');  // a Space's frame
}

// The heat's colours: the body's class names them, and every tab's heat follows.
const scales = JSON.parse(element.querySelector('[data-scales]').dataset.scales), known = Object.keys(scales);
let scale = known[0];
function colour(chosen) {
  scale = chosen;
  for (const name of known) document.body.classList.toggle(`sod-${name}`, name === scale);
  element.querySelector('[data-scales]').textContent = `Heat: ${scales[scale]}`;
}
const heat = () => { colour(known[(known.indexOf(scale) + 1) % known.length]); later(); };

// What Gradio leaves without a name, or names where none may stand.
function name() {
  for (const box of document.querySelectorAll('input.search-input:not([aria-label])')) box.ariaLabel = 'Filter the table';
  for (const empty of document.querySelectorAll('div.empty[aria-label]:not([role])')) empty.role = 'img';
}

const later = () => { if (!waiting) waiting = setTimeout(write, REST); };

async function copy() {
  write();
  const lacks = place() ? place().dataset.lacks : '';
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {  // without https browsers have no clipboard for scripts
    const box = document.createElement('textarea');
    box.value = location.href;
    document.body.append(box);
    box.select();
    document.execCommand('copy');
    box.remove();
  }
  say(`Copied. ${lacks}`, lacks ? 6000 : 2000);
}

function say(text, milliseconds) {
  const says = element.querySelector('[role=status]');
  says.textContent = text;
  setTimeout(() => { says.textContent = ''; }, milliseconds);
}

const wide = matchMedia('(min-width: 900px) and (min-aspect-ratio: 5/4)');
const widen = () => document.body.classList.toggle('sod-wide', wide.matches);
wide.addEventListener('change', widen);
widen();

function present(on) {
  document.body.classList.toggle('sod-present', on);
  document.body.classList.toggle('sod-bare', on);
  const root = document.documentElement;
  if (on && root.requestFullscreen) root.requestFullscreen().catch(() => {});  // refused: the window is filled all the same
  if (!on && document.fullscreenElement) document.exitFullscreen();
  window.dispatchEvent(new Event('resize'));  // Plotly measures anew
}

const keys = () => { const list = element.querySelector('dialog'); if (list.open) list.close(); else list.showModal(); };
const presenting = () => document.body.classList.contains('sod-present');

function move(steps) {
  const range = slider();
  if (!range) return;
  range.value = Number(range.value) + steps * Number(range.step);  // the browser keeps it within the ends
  range.dispatchEvent(new Event('input', {bubbles: true}));
}

function playOrStop() {
  const found = ['#stop', '#play', '#mask-stage [data-act=play]'].map(one);
  const button = found.find((candidate) => candidate && candidate.checkVisibility());
  if (button) button.click();
}

function nextLayer() {
  const radios = Array.from(document.querySelectorAll('#layer input[type=radio]'));
  if (radios.length) radios[(radios.findIndex((radio) => radio.checked) + 1) % radios.length].click();
}

const toServer = (said) => one('[data-link=restore]').dispatchEvent(new CustomEvent('sod-key', {detail: said, bubbles: true}));
const writing = (target) => target.matches('textarea, [contenteditable=true], input:not([type=range], [type=radio], [type=checkbox])');
const steered = (target) => target.matches('input, select, rect, [role=tab], [role=option], [role=slider]');  // by arrows of its own

// Whether the key meant something.
function pressed({key, shiftKey, target}) {
  if (key === '?') return keys(), true;
  if (key === 'Escape' && presenting()) return present(false), true;
  if (key === 'p') return present(!presenting()), true;
  if (key === 'h') return heat(), true;
  if (key === 'c') return document.body.classList.toggle('sod-bare'), true;
  if ((key === 'ArrowLeft' || key === 'ArrowRight') && !steered(target)) return move((key === 'ArrowLeft' ? -1 : 1) * (shiftKey ? 10 : 1)), true;
  if (key === ' ' && !target.closest('button, a, summary, label, input, [role=button], [role=tab]')) return playOrStop(), true;
  if (shown() !== TABS[0]) return false;
  if (key === 'l') return nextLayer(), true;
  if (/^[1-9]$/.test(key)) return toServer({model: Number(key) - 1}), true;
  return false;
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || writing(event.target)) return;
  if (element.querySelector('dialog').open && event.key !== '?') return;
  if (pressed(event)) event.preventDefault();
});
document.addEventListener('keyup', (event) => {  // the dose rests: what only the server knows
  if (event.key.startsWith('Arrow') && shown() === 'mask' && slider() && !steered(event.target)) slider().dispatchEvent(new Event('change', {bubbles: true}));
});
document.addEventListener('fullscreenchange', () => { if (!document.fullscreenElement && presenting()) present(false); });
element.addEventListener('click', (event) => {
  const act = event.target.closest('[data-page]');
  if (act) ({copy, heat, present: () => present(!presenting()), keys})[act.dataset.page]();
});
document.addEventListener('input', later);
document.addEventListener('sod-moved', later);
document.addEventListener('click', later);
new MutationObserver((changes) => {
  if (changes.some(({target}) => target.matches('[data-link]') || target.querySelector('[data-link]'))) later();
}).observe(document.body, {childList: true, subtree: true, attributes: true, attributeFilter: ['data-values']});

const asked = new URLSearchParams(location.search).get('heat');
if (known.includes(asked)) colour(asked);
else if (asked !== null) say('This link asks for what is not here: the colours of the heat.', 8000);

// The tab that the address names, once it is there.
(function open(tries) {
  const tab = new URLSearchParams(location.search).get('tab');
  if (!TABS.slice(1).includes(tab)) return;
  const button = buttons().find((candidate) => named(candidate) === tab);
  if (button) button.click(); else if (tries) setTimeout(open, 50, tries - 1);
})(400);
