// --- the page -------------------------------------------------------------------------------

const page = JSON.parse(byId('data').textContent);
const asked = new URLSearchParams(location.hash.includes('=') ? location.hash.slice(1) : '');
const state = {
  target: Math.max(0, page.targets.findIndex((each) => each.target === asked.get('target'))),
  size: Math.max(0, page.sizes.findIndex((each) => each.name === asked.get('sizes'))),
  block: 0, view: asked.get('view'), fusion: '', status: '', code: '', words: '', sort: ['share', -1], memory: 'fit',
};
const target = () => page.targets[state.target];
const onGpu = () => target().family !== 'cpu';
let panes = [], hues = new Map();

/** A hue for each fusion, the same for all targets; the most frequent come first. */
function giveHues() {
  const counts = new Map();
  for (const each of page.targets) {
    for (const group of each.decisions) {
      const fired = group.status === 'fired' ? group.sites.length : 0;
      counts.set(group.fusion, (counts.get(group.fusion) || 0) + fired);
    }
  }
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || (a < b ? -1 : 1));
  hues = new Map(names.map((name, i) => [name, `h${i % 10}`]));
}

// --- theme ---

function theme(name) {
  document.documentElement.dataset.theme = name;
  show('theme', name === 'dark' ? 'Light' : 'Dark');
  byId('theme').setAttribute('aria-label', `Use the ${name === 'dark' ? 'light' : 'dark'} theme`);
}

function startTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  let own = asked.get('theme');
  const apply = () => theme(own === 'dark' || own === 'light' ? own : dark.matches ? 'dark' : 'light');
  dark.addEventListener('change', apply);
  byId('theme').addEventListener('click', () => {
    own = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
    apply();
  });
  apply();
}

// --- overview ---

const tile = (name, value, more) => el('div', { class: 'tile' }, el('dt', null, name),
  el('dd', { class: 'value' }, value), more ? el('dd', { class: 'more' }, more) : null);
const rows = (place, pairs) => show(place, pairs.filter(([, held]) => held !== null && held.length !== 0)
  .flatMap(([name, held]) => [el('dt', null, name), el('dd', null, held)]));
const codes = (texts) => texts.map((text) => el('code', null, text));
const sizesText = (at) => Object.entries(at).map(([name, value]) => `${name} ${grouped(value)}`).join(', ') || 'fixed';

function optionText(value) {
  if (value === null) return '';
  if (Array.isArray(value)) return value.map(optionText).join(', ');
  if (typeof value === 'object') return Object.entries(value).map(([key, held]) => `${key}: ${optionText(held)}`).join(', ');
  return value === true ? 'yes' : value === false ? '' : String(value);
}

function overview() {
  const held = target(), count = (status) => held.decisions
    .filter((group) => group.status === status).reduce((sum, group) => sum + group.sites.length, 0);
  show('brand', page.name);
  show('name', page.name);
  show('subtitle', `${page.source.kind} source, compiled for ${page.targets.map((each) => each.target).join(' and ')}. Shown: ${held.target}${held.arch === held.target ? '' : ` (${held.arch})`}.`);
  show('tiles',
    tile('Operations', grouped(held.nodes.after), held.nodes.before === null ? 'after the passes' : `of ${grouped(held.nodes.before)} as read`),
    tile('Launches', grouped(held.launches), held.unfused ? `${grouped(held.unfused)} unfused` : ''),
    tile('Fusions', grouped(count('fired')), count('refused') ? `${grouped(count('refused'))} refused` : 'none refused'),
    tile('Kernels', grouped(held.kernels.length), `${bytes(held.kernels.reduce((sum, kernel) => sum + kernel.bytes, 0))} of code`),
    tile('Weights', bytes(held.memory.weights_bytes), `${page.weights.storage}, ${plural(page.weights.count, 'tensor')}`),
    tile('Arena', bytes(held.memory.arena_bytes), Object.keys(held.arena_sizes || {}).length ? `at ${sizesText(held.arena_sizes)}` : ''),
    tile('Residual', held.residual.length ? grouped(held.residual.length) : 'none', held.residual.length ? 'left to onnxruntime' : 'all compiled'));
  rows('model', [
    ['Source', [page.source.name, el('br'), el('code', { class: 'muted' }, page.source.sha256.slice(0, 16))]],
    ['Inputs', codes(page.inputs.map(shape))],
    ['Outputs', codes(page.outputs.map(shape))],
    ['Symbols', codes(Object.entries(page.symbols).map(([name, [low, high]]) => `${name} in [${low}, ${grouped(high)}]`))],
    ['Typical', codes([sizesText(page.sizes[0].at)])],
    ['Weights', `${plural(page.weights.count, 'tensor')}, ${bytes(page.weights.bytes)}, ${page.weights.storage}`],
    ['File', `${page.file.name}, ${bytes(page.file.bytes)}`],
    ['Identity', [el('code', null, page.id.slice(0, 32))]],
  ]);
  rows('compilation', [
    ['Target', `${held.target}, ${held.family}${held.features.length ? `: ${held.features.join(' ')}` : ''}`],
    ['Launches', held.launches_text],
    ...Object.entries(page.options).map(([name, value]) => [name.replaceAll('_', ' '), optionText(value)]),
    ['Tools', Object.entries(page.tools).map(([name, version]) => `${name} ${version}`).join(', ')],
  ].filter(([, value]) => value));
  show('footer', `fusec ${page.tools.fusec || ''} \u00b7 artifact ${page.id} \u00b7 nothing on this page was measured: costs and limits are predictions.`);
}

// --- layers ---

const letter = (number) => (number < 26 ? String.fromCharCode(65 + number) : `B${number}`);
const layered = (block) => block.layers[0] !== '';
const blockName = (block, number) => (layered(block) ? `Block ${letter(number)}` : target().layers.length ? 'Outside of layers' : 'The model');

function fusionsOf(block) {
  const counts = new Map();
  for (const node of page.graphs[block.after].nodes) {
    for (const fusion of (node.fused || []).slice(-1)) counts.set(fusion, (counts.get(fusion) || 0) + 1);
  }
  return [...counts.entries()].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

function layers() {
  const held = target();
  const kinds = held.blocks.filter(layered).length;
  const total = held.layers.length;
  show('layers-note', total
    ? `${plural(total, 'layer')}, of ${kinds === 1 ? 'one kind' : `${kinds} kinds`}: two are of one kind where their graphs, fusions and kernels are equal. Choose a block to see its graph.`
    : 'No module path of this model has a number, so all of it is one block.');
  show('strip', held.layers.map((layer) => el('i', { class: `h${layer.block % 10}`, 'data-block': layer.block, title: `${layer.layer}: block ${letter(layer.block)}` })));
  byId('strip').hidden = total === 0;
  byId('strip').setAttribute('aria-label', `The layers in order: ${held.layers.map((layer) => letter(layer.block)).join(' ')}`);
  const group = show('blocks', held.blocks.map((block, number) => el('button', {
    type: 'button', role: 'radio', class: 'block', 'data-block': number, onclick: () => chooseBlock(number),
  },
  el('span', { class: 'head' },
    el('span', { class: layered(block) ? `dot h${number % 10}` : 'dot none', 'aria-hidden': 'true' }),
    blockName(block, number),
    el('span', { class: 'times' }, layered(block) ? `\u00d7 ${block.layers.length}` : '')),
  el('span', { class: 'where mono' }, layered(block) ? block.title : total ? 'embeddings, masks, the last norm, the head' : 'all of it'),
  el('span', { class: 'does' }, block.launches === null ? plural(page.graphs[block.after].nodes.length, 'operation')
    : `${plural(block.launches, 'launch').replace('launchs', 'launches')}, ${block.unfused} unfused`),
  el('span', null, fusionsOf(block).map(([name, count]) => el('span', { class: `tag ${hues.get(name) || ''}` }, count > 1 ? `${name} ${count}` : name))))));
  roving(group, (button) => chooseBlock(Number(button.dataset.block)));
}

function chooseBlock(number) {
  state.block = Math.min(number, target().blocks.length - 1);
  for (const button of byId('blocks').children) {
    const is = Number(button.dataset.block) === state.block;
    button.setAttribute('aria-checked', String(is));
    button.tabIndex = is ? 0 : -1;
  }
  for (const cell of byId('strip').children) cell.dataset.on = String(Number(cell.dataset.block) === state.block);
  drawGraph();
}

// --- graph ---

const fusionOf = (node) => (node.fused ? node.fused[node.fused.length - 1] : null);

/** For each operation before: the ones after that took its place. */
function becameOf(after) {
  const became = new Map();
  after.nodes.forEach((node, index) => {
    for (const source of node.made || []) became.set(source, (became.get(source) || []).concat(index));
  });
  return became;
}

function lookOf(node, count) {
  const fusion = fusionOf(node);
  const kind = fusion ? hues.get(fusion) || 'h0' : node.view ? 'view' : count > 1 ? 'raised' : 'kept';
  const words = [node.op, node.out.join(', '), node.at, fusion ? `fused: ${fusion}` : ''].filter(Boolean).join('\n');
  return { class: kind, words, refused: Boolean(node.refused) };
}

function drawGraph() {
  const block = target().blocks[state.block];
  const after = page.graphs[block.after], before = block.before === null ? null : page.graphs[block.before];
  const became = becameOf(after);
  const lookAfter = (node) => lookOf(node, (node.made || []).length);
  const lookBefore = (node, index) => {
    const heirs = (became.get(index) || []).map((number) => after.nodes[number]);
    const fused = heirs.find((heir) => heir.fused), raised = heirs.find((heir) => (heir.made || []).length > 1);
    return { ...lookOf({ ...node, fused: fused && fused.fused, refused: null }, raised ? 2 : 1) };
  };
  const wanted = state.view || (byId('panes').clientWidth > 700 ? 'both' : 'after');
  const view = before === null ? 'after' : wanted;
  segments('views', before === null ? [['after', 'After']] : [['before', 'Before'], ['after', 'After'], ['both', 'Both']], view, (value) => { state.view = value; drawGraph(); });
  show('graph-note', `${blockName(block, state.block)}${layered(block) ? `, drawn for ${block.shown}` : ''}. `,
    before === null ? 'This artifact is of an older version: the graph before fusion is not in it.' : 'An operation selected on one side is marked on the other.');
  panes = [];
  const add = (kind, title, graph, look) => panes.push(new Pane(kind, title, graph, look, (box) => select(kind, box)));
  if (view !== 'after') add('before', 'Before', before, lookBefore);
  if (view !== 'before') add('after', 'After', after, lookAfter);
  show('panes', panes.map((pane) => pane.element));
  for (const pane of panes) pane.fit();
  drawLegend(before, after);
  select(null, null);
}

function drawLegend(before, after) {
  const names = [...new Set(after.nodes.map(fusionOf).filter(Boolean))];
  const nodes = after.nodes.filter((node) => !node.fused);
  const item = (kind, text) => el('li', null, el('i', { class: kind, 'aria-hidden': 'true' }), text);
  show('legend', names.map((name) => item(hues.get(name), name)),
    nodes.some((node) => !node.view && (node.made || []).length > 1) ? item('raised', 'recognised') : null,
    nodes.some((node) => node.view) ? item('view', 'view, no launch') : null,
    after.nodes.some((node) => node.refused) ? item('refusal', 'a fusion was refused') : null);
}

/** Select an operation of one side, mark what corresponds to it on the other, say all about it. */
function select(kind, box) {
  const block = target().blocks[state.block], after = page.graphs[block.after];
  const became = becameOf(after);
  for (const pane of panes) {
    const own = pane.kind === kind;
    if (!own || !box) pane.go(null);
    let same = new Set();
    if (box && box.node && !own) {
      same = new Set(kind === 'after' ? box.node.made || [] : became.get(box.index) || []);
    } else if (box && box.node && own && kind === 'before') {
      same = new Set((became.get(box.index) || []).flatMap((heir) => after.nodes[heir].made || []));
      same.delete(box.index);
    }
    if (own && kind === 'before') {
      for (const [index, made] of pane.drawn || []) made.classList.toggle('same', same.has(index));
    } else pane.mark(same);
  }
  show('node', box ? about(kind, box, became) : noneSelected());
}

function noneSelected() {
  const held = target().blocks[state.block], after = page.graphs[held.after];
  const counts = fusionsOf(held);
  return [el('h3', null, blockName(held, state.block)),
    el('p', { class: 'muted' }, layered(held) ? held.title : ''),
    el('h4', null, 'Operations'),
    el('p', null, held.before === null ? grouped(after.nodes.length) : `${page.graphs[held.before].nodes.length} as read, ${after.nodes.length} after the passes`),
    counts.length ? el('h4', null, 'Fusions') : null,
    counts.length ? el('p', null, counts.map(([name, count]) => el('span', { class: `tag ${hues.get(name)}` }, `${name} ${count}`))) : null,
    el('h4', null, 'Select an operation'),
    el('p', null, 'Its shapes, attributes, source line, decisions and kernel are shown here.')];
}

function about(kind, box, became) {
  if (box.port) {
    return [el('h3', null, 'from outside'), el('p', { class: 'mono' }, box.port.name), el('h4', null, 'Type'), el('p', { class: 'mono' }, box.port.type)];
  }
  const node = box.node, pane = panes.find((each) => each.kind === kind), graph = pane.graph;
  const list = (name, items) => (items.length ? [el('h4', null, name), el('ul', null, items.map((item) => el('li', { class: 'mono' }, item)))] : []);
  const jump = (where, index, text) => el('button', { type: 'button', class: 'go', onclick: () => jumpTo(where, index) }, text);
  const operand = (each) => {
    if (typeof each === 'string') return each;
    if (each < 0) return `${graph.from[-1 - each].name}: ${graph.from[-1 - each].type}`;
    return [jump(kind, each, `%${graph.nodes[each].n}`), ` ${graph.nodes[each].op}`];
  };
  const decided = decisionsAt(kind, node, box.index, became);
  const heirs = kind === 'before' ? became.get(box.index) || [] : [];
  const after = page.graphs[target().blocks[state.block].after], other = panes.length > 1;
  const kernels = (kind === 'after' ? node.kernels || [] : []).map((number) => target().kernels[number]);
  return [
    el('h3', null, node.op), el('p', { class: 'mono muted' }, `%${node.n}`),
    list(node.out.length > 1 ? 'Results' : 'Result', node.out),
    list('Operands', node.in.map(operand)),
    list('Attributes', Object.entries(node.attrs || {}).map(([name, value]) => `${name} = ${value}`)),
    list('From', [node.at, node.src, node.as].filter(Boolean)),
    decided.length ? [el('h4', null, 'Decisions'), decided.map(([group, words]) => el('p', null,
      el('span', { class: `tag ${group.status === 'fired' ? hues.get(group.fusion) : 'refused'}` }, `${group.fusion} ${group.status}`), words))] : [],
    kind === 'after' ? list('Took the place of', [...new Set(node.made || [])].map((index) => {
      const before = page.graphs[target().blocks[state.block].before].nodes[index];
      return other ? jump('before', index, before.op) : before.op;
    })) : list('Became', heirs.map((index) => (other ? jump('after', index, after.nodes[index].op) : after.nodes[index].op))),
    kind !== 'after' ? [] : kernels.length ? list('Kernel', kernels.map((kernel) => `${kernel.name} \u00b7 ${kernel.symbol}`))
      : node.view ? list('Kernel', ['none: memory is only looked at differently']) : [],
  ].flat(2);
}

function decisionsAt(kind, node, index, became) {
  const after = page.graphs[target().blocks[state.block].after];
  const nodes = kind === 'after' ? [node] : (became.get(index) || []).map((heir) => after.nodes[heir]);
  const names = new Set(nodes.map((each) => each.n));
  return target().decisions.filter((group) => group.sites.some(([, at]) => names.has(at)))
    .map((group) => [group, group.status === 'refused' ? ` ${group.code}: ${group.reason}` : ` ${group.details || group.backend}`]);
}

function jumpTo(kind, index) {
  const pane = panes.find((each) => each.kind === kind);
  if (!pane || !pane.byIndex.has(index)) return;
  pane.canvas.focus({ preventScroll: true });
  pane.go(index);
  pane.enter();
}

/** Show a decision's operation in the graph. */
function toGraph(site, node) {
  const held = target();
  const layer = held.layers.map((each) => each.layer).filter((name) => site === name || site.startsWith(`${name}.`)).pop() || '';
  const number = held.blocks.findIndex((block) => block.layers.includes(layer));
  if (number < 0) return;
  if (state.view === 'before') state.view = 'both';
  chooseBlock(number);
  byId('graph').scrollIntoView({ behavior: 'instant' });
  const graph = page.graphs[held.blocks[number].after];
  const twin = held.decisions.flatMap((group) => group.sites.map(([where, at]) => [where, at]))
    .find(([where]) => where === site.replace(layer, held.blocks[number].shown));
  const index = graph.nodes.findIndex((each) => each.n === node || (twin && each.n === twin[1]));
  if (index >= 0) jumpTo('after', index);
}

// --- decisions ---

function decisionFilters() {
  const held = target().decisions;
  const names = (key) => [...new Set(held.map((group) => group[key]).filter(Boolean))].sort();
  if (!names('fusion').includes(state.fusion)) state.fusion = '';
  if (!names('code').includes(state.code)) state.code = '';
  const count = (status) => held.filter((group) => !status || group.status === status).reduce((sum, group) => sum + group.sites.length, 0);
  show('decisions-note', `Each place where a fusion fired or was refused on ${target().target}; places with equal reasons stand together.`);
  options('by-fusion', [['', 'all'], ...names('fusion').map((name) => [name, name])], state.fusion, (value) => { state.fusion = value; drawDecisions(); });
  options('by-code', [['', 'all'], ...names('code').map((name) => [name, name])], state.code, (value) => { state.code = value; drawDecisions(); });
  byId('by-code').disabled = names('code').length === 0;
  segments('by-status', [['', `All ${count('')}`], ['fired', `Fired ${count('fired')}`], ['refused', `Refused ${count('refused')}`]], state.status, (value) => { state.status = value; drawDecisions(); });
}

/** The text with what was searched for marked. */
function marked(text) {
  const word = state.words.toLowerCase(), parts = [];
  let rest = text;
  for (let at = word ? rest.toLowerCase().indexOf(word) : -1; at >= 0; at = rest.toLowerCase().indexOf(word)) {
    parts.push(rest.slice(0, at), el('mark', null, rest.slice(at, at + word.length)));
    rest = rest.slice(at + word.length);
  }
  return [...parts, rest];
}

function drawDecisions() {
  const word = state.words.toLowerCase(), has = (text) => text.toLowerCase().includes(word);
  let sites = 0;
  const shown = [];
  for (const group of target().decisions) {
    if (state.fusion && group.fusion !== state.fusion) continue;
    if (state.status && group.status !== state.status) continue;
    if (state.code && group.code !== state.code) continue;
    const own = [group.fusion, group.status, group.code, group.reason, group.hint, group.details, group.backend, ...group.rejected].some(has);
    const kept = own ? group.sites : group.sites.filter(([site, node]) => has(site) || has(node));
    if (!kept.length) continue;
    sites += kept.length;
    shown.push(groupElement(group, kept, !own));
  }
  show('found', `${plural(sites, 'site')} in ${plural(shown.length, 'group')}`);
  show('groups', shown.length ? shown : el('p', { class: 'note' }, target().decisions.length ? 'No decision fits these filters.' : 'No fusion matched anywhere in this model.'));
}

function groupElement(group, sites, open) {
  const refused = group.status === 'refused';
  const why = refused ? [el('code', null, ...marked(group.code)), ...marked(group.reason)]
    : [...marked(group.details), group.backend ? el('span', { class: 'muted' }, group.details ? ', by ' : 'by ', el('span', { class: 'mono' }, ...marked(group.backend))) : ''];
  const body = el('div', { class: 'body' });
  const made = el('details', { class: `group ${refused ? 'refused' : hues.get(group.fusion)}`, open, ontoggle: () => { if (made.open) fillBody(); } },
    el('summary', null,
      el('span', { class: 'fusion' }, ...marked(group.fusion)), el('span', { class: 'status' }, group.status),
      el('span', { class: 'why' }, why), el('span', { class: 'count' }, plural(sites.length, 'site'))), body);
  function fillBody() {
    if (body.childElementCount) return;
    if (group.hint) body.append(el('p', { class: 'hint' }, el('b', null, 'To change that: '), ...marked(group.hint)));
    if (group.rejected.length) {
      body.append(el('p', { class: 'muted' }, 'Asked before:'), el('ul', { class: 'sites' }, group.rejected.map((text) => el('li', null, ...marked(text)))));
    }
    body.append(el('ul', { class: 'sites' }, sites.map(([site, node]) => el('li', null,
      el('button', { type: 'button', title: `%${node}: show it in the graph`, onclick: () => toGraph(site, node) }, ...marked(site))))));
  }
  if (open) fillBody();
  return made;
}

// --- kernels ---

/** Costs of one run: bytes, operations and the predicted time of each kernel at the chosen sizes. */
function costsOf(points, name) {
  const limits = target().limits, found = new Map();
  for (const point of points) {
    if (point.costs[state.size] === null) continue;
    const [read, write, done] = point.costs[state.size], count = point.steps.length;
    const peak = limits && limits.flops_per_second[point.unit];
    const key = name(point);
    const row = found.get(key) || { kernel: point.kernel, ops: new Set(), unit: point.unit, launches: 0, bytes: 0, flops: 0, time: 0, most: -1 };
    row.ops.add(point.op);
    row.launches += count;
    row.bytes += count * (read + write);
    row.flops += count * done;
    if (done * count > row.most) { row.most = done * count; row.unit = point.unit; }
    if (limits) row.time += count * Math.max((read + write) / limits.bytes_per_second, peak ? done / peak : 0);
    found.set(key, row);
  }
  const all = [...found.values()];
  const sum = (key) => all.reduce((total, row) => total + row[key], 0) || 1;
  const total = limits ? sum('time') : sum('bytes');
  for (const row of all) {
    const kernel = row.kernel === null ? null : target().kernels[row.kernel];
    const peak = limits && limits.flops_per_second[row.unit];
    row.name = kernel ? kernel.name : 'onnxruntime';
    row.share = (limits ? row.time : row.bytes) / total;
    row.intensity = row.bytes ? row.flops / row.bytes : 0;
    row.speed = limits && row.time ? row.flops / row.time : 0;
    row.bound = !limits ? '' : peak && row.flops / peak > row.bytes / limits.bytes_per_second ? row.unit : 'memory';
    row.hue = hueOfOps(row.ops);
    row.words = `${row.name} (${[...row.ops].join(', ')}): ${plural(row.launches, 'launch').replace('launchs', 'launches')}, ${bytes(row.bytes)} moved, ${flops(row.flops)}flop of ${row.unit}, ${short(row.intensity)} flop/byte${limits ? `, bound by ${row.bound}, ${percent(row.share)} of the predicted ${seconds(total)}` : `, ${percent(row.share)} of the bytes`}`;
  }
  return all;
}

const hueOfOps = (ops) => [...ops].map((op) => hues.get(op)).find(Boolean) || 'none';

const uses = (held, key) => held.kernels.some((kernel) => kernel.resources[key] > 0);
const COLUMNS = [
  ['name', 'Kernel', () => true],
  ['launches', 'Launches', () => true],
  ['share', 'Share', (held) => held.points.length],
  ['moved', 'Moved', (held) => held.points.length],
  ['flops', 'Flop', (held) => held.points.length],
  ['intensity', 'Flop/byte', (held) => held.points.length],
  ['bound', 'Bound by', (held) => held.points.length && held.limits],
  ['vgpr', 'VGPR'], ['agpr', 'AGPR', (held) => uses(held, 'agpr')], ['sgpr', 'SGPR'], ['lds_bytes', 'LDS'],
  ['scratch_bytes', 'Scratch', (held) => uses(held, 'scratch_bytes')],
  ['spills', 'Spills'], ['waves', 'Waves'],
  ['code', 'Code', () => true],
].map(([key, title, when]) => [key, title, when || ((held) => held.family !== 'cpu')]);

function kernelRows() {
  const held = target(), byKernel = new Map(costsOf(held.points, (point) => point.kernel).map((row) => [row.kernel, row]));
  const launches = new Map();
  const idle = new Set(held.points.filter((point) => point.costs[state.size] === null).flatMap((point) => point.steps));
  held.steps.forEach((step, i) => { if (!idle.has(i)) launches.set(step.kernel, (launches.get(step.kernel) || 0) + 1); });
  return held.kernels.map((kernel, number) => {
    const cost = byKernel.get(number) || {}, resources = kernel.resources;
    const spills = (resources.vgpr_spills || 0) + (resources.sgpr_spills || 0);
    return {
      ...resources, number, kernel, cost, name: kernel.name, launches: launches.get(number) || 0, share: cost.share || 0,
      moved: cost.bytes || 0, flops: cost.flops || 0, intensity: cost.intensity || 0, bound: cost.bound || '',
      spills, waves: (kernel.machine || {}).waves_per_unit ?? null, code: kernel.bytes,
    };
  });
}

function cellOf(key, row) {
  const value = row[key];
  if (key === 'name') return [row.kernel.name, el('span', { class: 'sub', title: row.kernel.symbol }, row.kernel.op === row.kernel.name ? row.kernel.symbol : `${row.kernel.op} \u00b7 ${row.kernel.symbol}`)];
  if (key === 'share') {
    return el('span', { class: 'share' }, svg('svg', { width: 48, height: 8, 'aria-hidden': 'true' },
      svg('rect', { width: 48, height: 8, rx: 3 }), svg('rect', { width: rounded(48 * row.share), height: 8, rx: 3 })), percent(row.share));
  }
  if (['moved', 'code', 'lds_bytes', 'scratch_bytes'].includes(key)) return value ? bytes(value) : key === 'code' ? 'library' : '0';
  if (key === 'flops') return value ? flops(value) : '0';
  if (key === 'intensity') return short(value);
  return value === null || value === undefined || value === '' ? '\u2013' : typeof value === 'number' ? grouped(value) : value;
}

function drawKernels() {
  const held = target(), columns = COLUMNS.filter(([, , when]) => when(held)), size = page.sizes[state.size];
  const limits = held.limits;
  show('kernels-note', held.points.length
    ? `${plural(held.kernels.length, 'kernel')} at ${size.name} sizes (${sizesText(size.at)}). Bytes are those of a perfect cache. ${limits ? 'Share is of the predicted time of a run.' : 'Share is of the bytes moved in a run.'}`
    : `${plural(held.kernels.length, 'kernel')}. This artifact is of an older version: costs of steps are not in it.`);
  const chart = byId('roofline').closest('figure');
  chart.hidden = held.points.length === 0;
  if (held.points.length) {
    const points = costsOf(held.points, (point) => `${point.kernel} ${point.op} ${point.costs[state.size]}`);
    const usual = limits
      ? `Data sheet, prediction (${limits.source}). Nothing was measured: a point is the fastest that the limits allow, its area the share of the predicted time.`
      : 'There is no data sheet for this target: only intensity and bytes are shown; the area is the share of the bytes.';
    show('roofline-note', usual);
    roofline('roofline', points, limits, (row) => {
      for (const each of points) if (each.point) each.point.classList.toggle('on', each === row);
      show('roofline-note', row.words);
      for (const line of byId('kernel-table').querySelectorAll('tbody tr')) line.classList.toggle('on', Number(line.dataset.kernel) === row.kernel);
    });
  }
  const [key, way] = columns.some(([name]) => name === state.sort[0]) ? state.sort : ['launches', -1];
  const sorted = kernelRows().sort((a, b) => {
    const [x, y] = [a[key] ?? -1, b[key] ?? -1];
    return (x < y ? -1 : x > y ? 1 : 0) * way || a.number - b.number;
  });
  const head = el('tr', null, columns.map(([name, title]) => el('th', {
    scope: 'col', 'aria-sort': name === key ? (way > 0 ? 'ascending' : 'descending') : null,
  }, el('button', { type: 'button', 'data-key': name, onclick: () => {
    state.sort = [name, name === key ? -way : name === 'name' || name === 'bound' ? 1 : -1];
    drawKernels();
    byId('kernel-table').querySelector(`[data-key="${name}"]`).focus();
  } }, title))));
  show('kernel-table', el('caption', { class: 'hidden' }, `Kernels of ${held.target}`), el('thead', null, head), el('tbody', null, sorted.map((row) => el('tr', { 'data-kernel': row.number },
    columns.map(([name]) => el('td', { class: (name === 'spills' || name === 'scratch_bytes') && row[name] > 0 ? 'warn' : null }, cellOf(name, row)))))));
  show('kernel-legend', onGpu() ? 'Waves: on a compute unit at once, at most 32. LDS: local memory of a work group. A kernel without launches serves other sizes.' : '');
}

// --- memory, residual ---

function drawMemory() {
  const held = target(), plan = held.memory_plan, size = page.sizes[state.size];
  const said = memoryPlot('memory-plot', plan, state.size, held.steps, (step) => hues.get(step.op) || 'none', (step) => step.layer || null, state.memory, (text) => show('memory-caption', text));
  show('memory-note', said && said.arena
    ? `Where intermediate values lie, from step to step, at ${size.name} sizes (${sizesText(size.at)}): at most ${bytes(said.alive)} are alive at once, in an arena of ${bytes(said.arena)}. Weights, inputs and outputs lie elsewhere.`
    : 'Intermediate values of this target need no memory.');
  show('memory-caption', said && said.arena ? 'A bar is a buffer: point at one, or click it.' : '');
}

function drawResidual() {
  const held = target().residual, groups = new Map();
  for (const { op, node, reason } of held) {
    const key = `${op}\n${reason}`;
    groups.set(key, (groups.get(key) || { op, reason, nodes: [] }));
    groups.get(key).nodes.push(node);
  }
  show('residual-note', held.length ? `${plural(held.length, 'operation')} that no kernel computes on ${target().target}: onnxruntime runs them.` : `Nothing: every operation is compiled for ${target().target}.`);
  show('residual-list', el('div', { class: 'groups' }, [...groups.values()].map(({ op, reason, nodes }) => el('details', { class: 'group refused' },
    el('summary', null, el('span', { class: 'fusion' }, op), el('span', { class: 'status' }, 'residual'), el('span', { class: 'why' }, reason), el('span', { class: 'count' }, plural(nodes.length, 'node'))),
    el('div', { class: 'body' }, el('ul', { class: 'sites' }, nodes.map((node) => el('li', null, node))))))));
}

// --- all of it ---

function drawTarget() {
  overview();
  layers();
  chooseBlock(state.block < target().blocks.length ? state.block : 0);
  decisionFilters();
  drawDecisions();
  drawSizes();
  drawResidual();
}

function drawSizes() {
  drawKernels();
  drawMemory();
}

function start() {
  startTheme();
  giveHues();
  options('target', page.targets.map((each, i) => [String(i), each.target]), String(state.target), (value) => { state.target = Number(value); state.block = 0; drawTarget(); });
  options('sizes', page.sizes.map((each, i) => [String(i), `${each.name}: ${sizesText(each.at)}`]), String(state.size), (value) => { state.size = Number(value); drawSizes(); });
  state.block = Math.max(0, Math.min(Number(asked.get('block')) || 0, target().blocks.length - 1));
  segments('memory-zoom', [['fit', 'Fit'], ['middle', 'Wider'], ['wide', 'Widest']], state.memory, (value) => { state.memory = value; drawMemory(); });
  for (const [button, change] of [['zoom-in', (pane) => pane.zoom(pane.scale * 1.25)], ['zoom-out', (pane) => pane.zoom(pane.scale / 1.25)], ['zoom-fit', (pane) => pane.fit()]]) {
    byId(button).addEventListener('click', () => panes.forEach(change));
  }
  byId('search').addEventListener('input', () => { state.words = byId('search').value.trim(); drawDecisions(); });
  addEventListener('keydown', (event) => {
    const typing = event.target.matches('input, select, textarea');
    if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId('search').focus();
    } else if (event.key === 'Escape') {
      if (event.target.id === 'search') { byId('search').value = ''; state.words = ''; drawDecisions(); event.target.blur(); }
      else select(null, null);
    }
  });
  drawTarget();
  let width = innerWidth;
  addEventListener('resize', () => {
    if (Math.abs(innerWidth - width) < 40) return;
    width = innerWidth;
    drawSizes();
    if (!state.view) drawGraph();
    else panes.forEach((pane) => pane.fit());
  });
  const links = new Map([...document.querySelectorAll('.sections a')].map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((seen) => {
    for (const { target: section, isIntersecting } of seen) {
      if (isIntersecting) for (const [id, link] of links) link.toggleAttribute('aria-current', id === section.id);
    }
  }, { rootMargin: '-30% 0px -65% 0px' });
  for (const id of links.keys()) watch.observe(byId(id));
  if (asked.get('section')) byId(asked.get('section'))?.scrollIntoView({ behavior: 'instant' });
}

start();
