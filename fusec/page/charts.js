// --- the roofline and the memory plan -------------------------------------------------------

const log10 = Math.log10;
const wideOf = (place) => Math.max(300, Math.min(1320, byId(place).clientWidth || 900));
const power = (exponent) => (exponent >= 0 && exponent <= 3 ? grouped(10 ** exponent)
  : [...'10', ...[...String(exponent)].map((digit) => '\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079'[digit] || '\u207b')].join(''));

/** A log-log frame: scales, grid, axes. */
function frame(wide, high, xs, ys, xName, yName, unit) {
  const left = 80, right = 16, top = 14, bottom = 46;
  const span = (values) => {
    const exps = values.filter((value) => value > 0).map(log10);
    const low = Math.floor(Math.min(...exps, Infinity) - 0.15), high = Math.ceil(Math.max(...exps, -Infinity) + 0.15);
    return exps.length ? [low, Math.max(high, low + 1)] : [0, 1];
  };
  const [x0, x1] = span(xs), [y0, y1] = span(ys);
  const x = (value) => left + ((log10(value) - x0) / (x1 - x0)) * (wide - left - right);
  const y = (value) => high - bottom - ((log10(value) - y0) / (y1 - y0)) * (high - top - bottom);
  const made = svg('svg', { viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: 'img' });
  for (let i = x0; i <= x1; i += 1) {
    made.append(svg('line', { class: 'grid', x1: x(10 ** i), x2: x(10 ** i), y1: top, y2: high - bottom }),
      svg('text', { x: x(10 ** i), y: high - bottom + 18, 'text-anchor': 'middle' }, power(i)));
  }
  const every = Math.ceil((y1 - y0) / 7);
  for (let i = y0; i <= y1; i += every) {
    made.append(svg('line', { class: 'grid', y1: y(10 ** i), y2: y(10 ** i), x1: left, x2: wide - right }),
      svg('text', { x: left - 8, y: y(10 ** i) + 4, 'text-anchor': 'end' }, unit(10 ** i)));
  }
  made.append(
    svg('line', { class: 'axis', x1: left, x2: wide - right, y1: high - bottom, y2: high - bottom }),
    svg('line', { class: 'axis', x1: left, x2: left, y1: top, y2: high - bottom }),
    svg('text', { x: (left + wide - right) / 2, y: high - 8, 'text-anchor': 'middle' }, xName),
    svg('text', { transform: `translate(13 ${(top + high - bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle' }, yName));
  return { made, x, y, left, right: wide - right, top, bottom: high - bottom, low: [10 ** x0, 10 ** y0], most: [10 ** x1, 10 ** y1] };
}

/**
 * Points at their intensity.  With limits a point stands at the speed that they allow it at most;
 * without, at the bytes that it moves.
 */
function roofline(place, rows, limits, choose) {
  const shown = rows.filter((row) => row.bytes > 0 && row.flops > 0);
  if (!shown.length) return show(place, el('p', { class: 'empty' }, 'No kernel of this target computes anything at these sizes.'));
  const wide = wideOf(place), high = wide < 560 ? 330 : 400;
  const peaks = limits ? Object.entries(limits.flops_per_second).filter(([unit]) => shown.some((row) => row.unit === unit)) : [];
  const height = (row) => (limits ? row.speed : row.bytes);
  const ridge = peaks.map(([, peak]) => peak / limits.bytes_per_second);
  const xs = shown.map((row) => row.intensity).concat(ridge.map((each) => each * 3));
  const ys = shown.map(height).concat(peaks.map(([, peak]) => peak * 1.3));
  const axes = limits
    ? frame(wide, high, xs, ys, 'operations for each byte moved', 'operations a second, at most', (value) => flops(value).replace(/\.0+| /g, ''))
    : frame(wide, high, xs, ys, 'operations for each byte moved', 'bytes moved in a run', (value) => bytes(value).replace(/\.0+/, ''));
  const { made, x, y } = axes;
  made.setAttribute('aria-label', limits ? 'Roofline: predicted limits of each kernel; the table below has the numbers' : 'Intensity and bytes of each kernel; the table below has the numbers');
  if (limits) {
    const from = Math.max(axes.low[0], axes.low[1] / limits.bytes_per_second);
    const top = Math.max(...peaks.map(([, peak]) => peak));
    const knee = Math.min(top / limits.bytes_per_second, axes.most[0]);
    made.append(svg('path', { class: 'roof', d: `M${x(from)} ${y(from * limits.bytes_per_second)}L${x(knee)} ${y(knee * limits.bytes_per_second)}` }));
    let last = -Infinity;
    for (const [unit, peak] of peaks.sort((a, b) => b[1] - a[1])) {
      const start = peak / limits.bytes_per_second, level = y(peak);
      if (start < axes.most[0]) made.append(svg('path', { class: 'roof', d: `M${x(start)} ${level}H${axes.right}` }));
      const label = Math.max(level - 6, last + 15);
      made.append(svg('text', { x: axes.right - 4, y: label, 'text-anchor': 'end', class: 'label' }, wide < 560 ? `${unit} ${flops(peak)}` : `${unit} ${flops(peak)}flop/s`));
      last = label;
    }
    const middle = Math.sqrt(from * knee), slope = (Math.atan2(y(knee * limits.bytes_per_second) - y(from * limits.bytes_per_second), x(knee) - x(from)) * 180) / Math.PI;
    if (wide >= 560) made.append(svg('text', {
      class: 'label', 'text-anchor': 'middle',
      transform: `translate(${rounded(x(middle))} ${rounded(y(middle * limits.bytes_per_second) - 8)}) rotate(${rounded(slope)})`,
    }, `memory ${bytes(limits.bytes_per_second)}/s`));
  }
  const points = [...shown].sort((a, b) => b.share - a.share).map((row) => {
    const point = svg('circle', {
      class: `p ${row.hue}`, cx: rounded(x(row.intensity)), cy: rounded(y(height(row))), r: rounded(4 + 15 * Math.sqrt(row.share)),
      onclick: () => choose(row), onpointerenter: () => choose(row),
    }, svg('title', null, row.words));
    made.append(point);
    row.point = point;
    return point;
  });
  show(place, made);
  return points;
}

/** Which buffer lies in which slot from step to step, below how much is alive. */
function memoryPlot(place, plan, size, steps, hueOf, layerOf, zoom, choose) {
  const lanes = plan.slots.length, count = steps.length;
  if (!lanes || !count) return show(place, el('p', { class: 'empty' }, 'The arena of this target is empty.'));
  const alive = new Array(count).fill(0);
  for (const [, first, last, held] of plan.buffers) for (let i = first; i <= last; i += 1) alive[i] += held[size];
  const peak = alive.reduce((best, value, i) => (value > alive[best] ? i : best), 0);
  const arena = plan.slots.reduce((sum, slot) => sum + slot[size], 0);
  const room = wideOf(place), left = 84, right = 14, curve = 110, top = 22, lane = lanes > 40 ? 9 : 15, gap = 30;
  const wide = Math.max(room, zoom === 'fit' ? room : Math.min(30000, left + right + count * (zoom === 'wide' ? 20 : 8)));
  const high = top + curve + gap + lanes * lane + 34;
  const x = (step) => rounded(left + (step / count) * (wide - left - right));
  const y = (value) => rounded(top + curve - (value / (arena || 1)) * curve);
  const made = svg('svg', { viewBox: `0 0 ${rounded(wide)} ${high}`, width: rounded(wide), height: high, role: 'img', 'aria-label': `Memory of intermediate values over ${count} steps: at most ${bytes(alive[peak])} alive, at step ${peak + 1}; the arena has ${bytes(arena)}` });
  if (wide > room + 1) made.setAttribute('class', 'scrolls');
  const base = top + curve, floor = base + gap;
  made.append(
    svg('line', { class: 'grid', x1: left, x2: wide - right, y1: y(arena), y2: y(arena) }),
    svg('text', { x: left - 8, y: y(arena) + 4, 'text-anchor': 'end' }, bytes(arena)),
    svg('text', { x: left - 8, y: base + 4, 'text-anchor': 'end' }, '0'),
    svg('text', { x: left + 6, y: y(arena) - 6 }, 'arena'),
    svg('path', { class: 'area', d: `M${x(0)} ${base}${alive.map((value, i) => `V${y(value)}H${x(i + 1)}`).join('')}V${base}Z` }),
    svg('line', { class: 'axis', x1: left, x2: wide - right, y1: base, y2: base }));
  plan.slots.forEach((slot, number) => {
    made.append(svg('rect', { class: 'lane', x: left, width: rounded(wide - left - right), y: floor + number * lane, height: lane - 2 }));
    if (lane > 12 || number % 2 === 0) {
      made.append(svg('text', { x: left - 8, y: floor + number * lane + lane / 2 + 3, 'text-anchor': 'end' }, bytes(slot[size])));
    }
  });
  made.append(svg('text', { x: left, y: floor - 8 }, `${plural(lanes, 'slot')}, each with what lies in it`));
  let selected = null;
  const slim = (wide - left - right) / count < 1.5 ? 0 : 0.8;
  for (const [slot, first, last, held] of plan.buffers) {
    const bar = svg('rect', {
      class: `b ${hueOf(steps[first])}`, x: x(first), width: Math.max(0.6, rounded(x(last + 1) - x(first) - slim)), y: floor + slot * lane, height: lane - 2, rx: lane > 12 ? 2.5 : 1,
      onclick: pick, onpointerenter: pick,
    });
    function pick() {
      if (selected) selected.classList.remove('on');
      selected = bar;
      bar.classList.add('on');
      choose(`Slot ${slot + 1}: ${bytes(held[size])} from ${steps[first].op} (step ${first + 1}, ${steps[first].node}) until step ${last + 1}, ${steps[last].op}`);
    }
    made.append(bar);
  }
  const bottom = floor + lanes * lane;
  let before = null, free = 0;
  steps.forEach((step, i) => {
    const layer = layerOf(step);
    if (layer !== before && layer !== null) {
      made.append(svg('line', { class: 'axis', x1: x(i), x2: x(i), y1: bottom, y2: bottom + 6 }));
      const text = layer.split('.').pop();
      if (x(i) >= free) {
        made.append(svg('text', { x: x(i) + 3, y: bottom + 15 }, text));
        free = x(i) + 12 + 8 * text.length;
      }
    }
    before = layer;
  });
  made.append(svg('text', { x: left - 8, y: bottom + 15, 'text-anchor': 'end' }, 'layer'));
  const at = (x(peak) + x(peak + 1)) / 2;
  made.append(svg('line', { class: 'peak', x1: at, x2: at, y1: y(arena), y2: bottom }),
    svg('text', { class: 'peak-label', x: Math.max(left + 90, Math.min(at, wide - right - 44)), y: y(arena) - 6, 'text-anchor': 'middle' }, `peak ${bytes(alive[peak])}`));
  show(place, el('div', { class: 'scroll-x', tabindex: 0, role: 'region', 'aria-label': 'Memory plan' }, made));
  return { peak, alive: alive[peak], arena };
}
