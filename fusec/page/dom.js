// --- small tools ----------------------------------------------------------------------------
// Whatever the document says is put in as text, never as markup.

const byId = (id) => document.getElementById(id);

function fill(made, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? '' : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== '') made.append(child);
  }
  return made;
}

const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props, ...children) =>
  fill(document.createElementNS('http://www.w3.org/2000/svg', tag), props, children);

function show(place, ...children) {
  const at = typeof place === 'string' ? byId(place) : place;
  at.replaceChildren(...children.flat().filter((child) => child !== null && child !== ''));
  return at;
}

const grouped = (number) => String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, ',');

function scaled(number, units, base = 1000) {
  let amount = number, unit = 0;
  while (amount >= base && unit < units.length - 1) { amount /= base; unit += 1; }
  const digits = unit === 0 || amount >= 100 ? 0 : amount >= 10 ? 1 : 2;
  return `${unit === 0 ? grouped(amount) : amount.toFixed(digits)} ${units[unit]}`.trim();
}

const bytes = (number) => scaled(number, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']);
const flops = (number) => scaled(number, ['', 'k', 'M', 'G', 'T', 'P', 'E']);
const short = (number) => (number >= 100 ? grouped(number) : String(Number(number.toPrecision(2))));
const plural = (count, word) => `${grouped(count)} ${word}${count === 1 ? '' : 's'}`;
const percent = (part) => (part >= 0.0995 ? `${Math.round(100 * part)} %` : `${(100 * part).toFixed(1)} %`);
const shape = (spec) => `${spec.name}: ${spec.dtype}[${spec.shape.join(', ')}]`;

function seconds(time) {
  for (const [unit, size] of [['s', 1], ['ms', 1e-3], ['\u00b5s', 1e-6]]) {
    if (time >= size) return `${(time / size).toPrecision(3)} ${unit}`;
  }
  return `${(time / 1e-9).toPrecision(3)} ns`;
}

/** Buttons of which one is chosen; arrow keys go from one to the next. */
function segments(place, options, chosen, choose) {
  const at = byId(place);
  show(at, options.map(([value, text]) => el('button', {
    type: 'button', role: 'radio', 'data-value': value, 'aria-checked': String(value === chosen),
    tabindex: value === chosen ? 0 : -1, onclick: () => pick(value),
  }, text)));
  function pick(value) {
    for (const button of at.children) {
      const is = button.dataset.value === value;
      button.setAttribute('aria-checked', String(is));
      button.tabIndex = is ? 0 : -1;
    }
    choose(value);
  }
  roving(at, (button) => pick(button.dataset.value));
}

/** Arrow keys among the children of a group of radio buttons. */
function roving(at, pick) {
  at.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...at.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    pick(next);
  };
}

function options(place, values, chosen, choose) {
  const at = byId(place);
  show(at, values.map(([value, text]) => el('option', { value, selected: value === chosen }, text)));
  at.onchange = () => choose(at.value);
}
