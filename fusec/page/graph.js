// --- the graph of a block -------------------------------------------------------------------
// A layered layout: an operation stands below all that it reads.  Values that pass several ranks
// get a place in each of them, one chain a value, so that lines run beside the boxes.

const ROW = 66, HIGH = 40, GAP = 18, THIN = 10;
const operands = (node) => node.in.filter((each) => typeof each === 'number');
const shownAs = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);

/** Boxes: operations, then values from outside; constants that only feed operations are left out. */
function boxesOf(graph) {
  const boxes = graph.nodes.map((node, index) => {
    const type = node.out[0] + (node.out.length > 1 ? ` +${node.out.length - 1}` : '');
    const wide = Math.max(node.op.length * 7.35, Math.min(type.length, 34) * 6.45) + 22;
    return { node, index, type: shownAs(type, 34), wide: Math.max(64, wide), reads: operands(node) };
  });
  const count = boxes.length;
  graph.from.forEach((value, number) => {
    const label = shownAs(value.name, 34), type = shownAs(value.type, 34);
    boxes.push({
      port: value, index: count + number, label, type, reads: [],
      wide: Math.max(label.length * 6.75, type.length * 6.45) + 16,
    });
  });
  for (const box of boxes) box.reads = box.reads.map((read) => (read < 0 ? count - 1 - read : read));
  const read = new Set(boxes.flatMap((box) => box.reads));
  const bare = (box) => box.node && box.node.op === 'constant' && !read.has(box.index);
  return boxes.filter((box) => !bare(box));
}

function ranksOf(boxes, at) {
  const readers = new Map(boxes.map((box) => [box.index, []]));
  for (const box of boxes) for (const read of new Set(box.reads)) readers.get(read).push(box);
  const ports = boxes.filter((box) => box.port), inner = boxes.filter((box) => !box.port);
  for (const box of ports) box.rank = 0;
  for (const box of inner) {
    box.rank = 1 + Math.max(0, ...box.reads.map((read) => at.get(read).rank));
  }
  for (const box of [...inner].reverse().concat(ports)) {
    const below = readers.get(box.index);
    if (box.reads.length === 0 && below.length) box.rank = Math.min(...below.map((each) => each.rank)) - 1;
  }
  const least = Math.min(...boxes.map((box) => box.rank));
  for (const box of boxes) box.rank -= least;
  return readers;
}

/** Ranks of boxes and of the places in chains, with who is above and below each. */
function chained(boxes, readers) {
  const ranks = [];
  const put = (item) => { (ranks[item.rank] = ranks[item.rank] || []).push(item); return item; };
  const links = [];
  for (const box of boxes) { box.up = []; box.down = []; put(box); }
  for (const box of boxes) {
    const below = readers.get(box.index);
    const last = Math.max(...below.map((each) => each.rank), 0);
    const chain = new Map([[box.rank, box]]);
    for (let rank = box.rank + 1; rank < last; rank += 1) {
      const bend = put({ rank, wide: THIN, bend: true, up: [], down: [] });
      join(chain.get(rank - 1), bend, box);
      chain.set(rank, bend);
    }
    for (const each of below) join(chain.get(each.rank - 1), each, box);
  }
  function join(from, to, source) {
    from.down.push(to);
    to.up.push(from);
    links.push({ from, to, source });
  }
  for (let rank = 0; rank < ranks.length; rank += 1) ranks[rank] = ranks[rank] || [];
  return { ranks, links };
}

function crossings(ranks) {
  let count = 0;
  for (const rank of ranks) {
    const ends = rank.flatMap((item) => item.down.map((to) => to.order).sort((a, b) => a - b));
    const tree = new Array(Math.max(0, ...ends) + 2).fill(0);
    ends.forEach((end, seen) => {
      let before = 0;
      for (let i = end + 1; i > 0; i -= i & -i) before += tree[i];
      count += seen - before;
      for (let i = end + 1; i < tree.length; i += i & -i) tree[i] += 1;
    });
  }
  return count;
}

function ordered(ranks, rounds) {
  const number = () => ranks.forEach((rank) => rank.forEach((item, i) => { item.order = i; }));
  const mean = (items, own) => (items.length ? items.reduce((sum, item) => sum + item.order, 0) / items.length : own);
  number();
  let best = crossings(ranks), kept = ranks.map((rank) => [...rank]);
  for (let round = 0; round < rounds && best > 0; round += 1) {
    const down = round % 2 === 0;
    const sweep = down ? ranks : [...ranks].reverse();
    for (const rank of sweep) {
      for (const item of rank) item.want = mean(down ? item.up : item.down, item.order);
      rank.sort((a, b) => a.want - b.want || a.order - b.order);
      rank.forEach((item, i) => { item.order = i; });
    }
    const now = crossings(ranks);
    if (now < best) { best = now; kept = ranks.map((rank) => [...rank]); }
  }
  kept.forEach((rank, i) => { ranks[i] = rank; });
  number();
}

/** Places nearest to the wanted ones that keep the order and the distances: pooled neighbours. */
function placed(rank) {
  let offset = 0;
  const pools = [];
  rank.forEach((item, i) => {
    if (i > 0) offset += (rank[i - 1].wide + item.wide) / 2 + (item.bend || rank[i - 1].bend ? GAP * 0.7 : GAP);
    item.offset = offset;
    let pool = { sum: (item.want - offset) * item.weight, weight: item.weight, items: [item] };
    while (pools.length && pools[pools.length - 1].sum / pools[pools.length - 1].weight > pool.sum / pool.weight) {
      const before = pools.pop();
      pool = { sum: before.sum + pool.sum, weight: before.weight + pool.weight, items: before.items.concat(pool.items) };
    }
    pools.push(pool);
  });
  for (const pool of pools) for (const item of pool.items) item.x = pool.sum / pool.weight + item.offset;
}

function positioned(ranks, rounds) {
  for (const rank of ranks) {
    let x = 0;
    for (const item of rank) { item.x = x + item.wide / 2; x += item.wide + GAP; }
    for (const item of rank) item.x -= x / 2;
  }
  const pull = (item, others) => {
    let sum = 0, weight = 0;
    for (const other of others) { const w = item.bend && other.bend ? 8 : 1; sum += w * other.x; weight += w; }
    return weight ? [sum / weight, weight] : [item.x, 0.1];
  };
  for (let round = 0; round < rounds; round += 1) {
    const sweep = round % 2 === 0 ? ranks : [...ranks].reverse();
    for (const rank of sweep) {
      for (const item of rank) {
        const last = round >= rounds - 2;
        const others = last ? item.up.concat(item.down) : round % 2 === 0 ? item.up : item.down;
        [item.want, item.weight] = pull(item, others);
      }
      placed(rank);
    }
  }
}

function laidOut(graph) {
  const boxes = boxesOf(graph);
  if (!boxes.length) return { boxes, links: [], wide: 0, high: 0 };
  const at = new Map(boxes.map((box) => [box.index, box]));
  const { ranks, links } = chained(boxes, ranksOf(boxes, at));
  const items = ranks.reduce((sum, rank) => sum + rank.length, 0);
  ordered(ranks, items > 4000 ? 4 : 16);
  positioned(ranks, items > 4000 ? 6 : 18);
  let left = Infinity, right = -Infinity;
  ranks.forEach((rank, number) => rank.forEach((item) => {
    item.y = number * ROW + HIGH / 2 + 14;
    left = Math.min(left, item.x - item.wide / 2);
    right = Math.max(right, item.x + item.wide / 2);
  }));
  ranks.forEach((rank) => rank.forEach((item) => { item.x += 18 - left; }));
  return { boxes, links, ranks, wide: right - left + 36, high: ranks.length * ROW + 22 };
}

const rounded = (number) => Math.round(number * 10) / 10;

function pathOf({ from, to }) {
  const x0 = rounded(from.x), x1 = rounded(to.x);
  const y0 = from.y + (from.bend ? 0 : HIGH / 2), y1 = to.y - (to.bend ? 0 : HIGH / 2 + 4);
  if (Math.abs(x0 - x1) < 0.6) return `M${x0} ${y0}V${y1}`;
  const middle = (y0 + y1) / 2;
  return `M${x0} ${y0}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}`;
}

/** A pane with a drawn graph: selection, keys, zoom; `look(node, index)` gives class and words. */
class Pane {
  constructor(kind, title, graph, look, select) {
    this.kind = kind;
    this.graph = graph;
    this.select = select;
    this.layout = laidOut(graph);
    this.byIndex = new Map(this.layout.boxes.map((box) => [box.index, box]));
    this.scale = 1;
    this.current = null;
    this.canvas = el('div', {
      class: 'canvas', tabindex: 0, role: 'application',
      'aria-label': `${title}: arrow keys go from operation to operation, Enter selects one`,
      onkeydown: (event) => this.key(event),
      onwheel: (event) => this.wheel(event),
      onpointerdown: (event) => this.drag(event),
      onclick: (event) => this.click(event),
    });
    const count = graph.nodes.length;
    this.element = el('div', { class: 'panel pane' },
      el('h3', null, title, el('span', null, plural(count, 'operation'))), this.canvas);
    if (count) this.draw(look);
    else show(this.canvas, el('p', { class: 'empty' }, 'Nothing of this layer is left here.'));
  }

  draw(look) {
    const { boxes, links, wide, high } = this.layout;
    this.svg = svg('svg', { viewBox: `0 0 ${rounded(wide)} ${high}`, 'aria-hidden': 'true' });
    const marker = `tip-${this.kind}`;
    this.svg.append(svg('defs', null, svg('marker', {
      id: marker, viewBox: '0 0 6 6', refX: 3, refY: 3, markerWidth: 6, markerHeight: 6, orient: 'auto',
    }, svg('path', { d: 'M0 .6L5.4 3L0 5.4z', class: 'tip' }))));
    this.lines = links.map((link) => {
      const line = svg('path', {
        d: pathOf(link), class: 'e', 'marker-end': link.to.bend ? null : `url(#${marker})`,
      });
      this.svg.append(line);
      return { line, link };
    });
    this.drawn = new Map();
    for (const box of boxes) {
      const top = rounded(box.y - HIGH / 2), left = rounded(box.x - box.wide / 2);
      const about = box.port ? { class: 'port' } : look(box.node, box.index);
      const made = svg('g', { class: `n ${about.class}`, 'data-index': box.index, id: `${this.kind}-${box.index}` },
        svg('title', null, box.port ? `${box.port.name}\n${box.port.type}` : about.words),
        svg('rect', { x: left, y: top, width: rounded(box.wide), height: HIGH, rx: 7 }),
        svg('text', { class: 'op', x: rounded(box.x), y: top + 17 }, box.port ? box.label : box.node.op),
        svg('text', { class: 'ty', x: rounded(box.x), y: top + 31 }, box.type),
        about.refused ? svg('circle', { cx: left + box.wide - 3, cy: top + 3, r: 4.5 }) : null);
      this.svg.append(made);
      this.drawn.set(box.index, made);
    }
    this.canvas.append(this.svg);
  }

  fit() {
    if (!this.svg) return;
    const room = this.canvas.clientWidth - 2;
    this.zoom(Math.max(0.72, Math.min(1, room / this.layout.wide)));
    const top = this.layout.boxes.filter((box) => box.rank < 3);
    const middle = top.reduce((sum, box) => sum + box.x, 0) / top.length;
    this.canvas.scrollTo(middle * this.scale - room / 2, 0);
  }

  zoom(scale) {
    if (!this.svg) return;
    const { canvas } = this;
    const x = (canvas.scrollLeft + canvas.clientWidth / 2) / this.scale;
    const y = (canvas.scrollTop + canvas.clientHeight / 2) / this.scale;
    this.scale = Math.max(0.2, Math.min(2.5, scale));
    this.svg.setAttribute('width', rounded(this.layout.wide * this.scale));
    this.svg.setAttribute('height', rounded(this.layout.high * this.scale));
    canvas.scrollTo(x * this.scale - canvas.clientWidth / 2, y * this.scale - canvas.clientHeight / 2);
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.zoom(this.scale * (event.deltaY < 0 ? 1.12 : 1 / 1.12));
  }

  drag(event) {
    if (event.pointerType !== 'mouse' || event.button !== 0) return;
    const { canvas } = this, left = canvas.scrollLeft, top = canvas.scrollTop;
    this.moved = false;
    const move = (to) => {
      if (Math.hypot(to.clientX - event.clientX, to.clientY - event.clientY) > 4) {
        this.moved = true;
        canvas.classList.add('dragged');
      }
      canvas.scrollTo(left - to.clientX + event.clientX, top - to.clientY + event.clientY);
    };
    const stop = () => {
      removeEventListener('pointermove', move);
      canvas.classList.remove('dragged');
    };
    addEventListener('pointermove', move);
    addEventListener('pointerup', stop, { once: true });
  }

  click(event) {
    if (this.moved) { this.moved = false; return; }
    const found = event.target.closest('.n');
    if (found) { this.go(Number(found.dataset.index)); this.enter(); }
    else this.select(null);
  }

  /** Make an operation the current one and bring it into view. */
  go(index, scroll = true) {
    if (this.current !== null && this.drawn) this.drawn.get(this.current).classList.remove('on');
    this.current = index;
    for (const { line, link } of this.lines || []) {
      line.classList.toggle('on', index !== null && (link.to.index === index || link.source.index === index));
    }
    if (index === null) { this.canvas.removeAttribute('aria-activedescendant'); return; }
    const box = this.byIndex.get(index);
    this.drawn.get(index).classList.add('on');
    this.canvas.setAttribute('aria-activedescendant', `${this.kind}-${index}`);
    if (scroll) this.bring(box);
  }

  bring(box) {
    const { canvas, scale } = this;
    const x = box.x * scale, y = box.y * scale, wide = (box.wide / 2 + 12) * scale, high = HIGH * scale;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = canvas;
    if (x - wide < scrollLeft || x + wide > scrollLeft + clientWidth) canvas.scrollLeft = x - clientWidth / 2;
    if (y - high < scrollTop || y + high > scrollTop + clientHeight) canvas.scrollTop = y - clientHeight / 2;
  }

  /** Mark the operations that another pane's selection corresponds to. */
  mark(indexes) {
    if (!this.drawn) return;
    for (const [index, made] of this.drawn) made.classList.toggle('same', indexes.has(index));
    this.svg.classList.toggle('faded', indexes.size > 0);
    const found = [...indexes].filter((index) => this.byIndex.has(index)).map((index) => this.byIndex.get(index));
    if (!found.length) return;
    const first = found.reduce((a, b) => (a.y <= b.y ? a : b)), { canvas, scale } = this;
    canvas.scrollTo(first.x * scale - canvas.clientWidth / 2, first.y * scale - canvas.clientHeight / 5);
  }

  enter() { this.select(this.byIndex.get(this.current)); }

  key(event) {
    const { key } = event;
    if (!this.drawn || event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === '+' || key === '=') this.zoom(this.scale * 1.2);
    else if (key === '-') this.zoom(this.scale / 1.2);
    else if (key === '0') this.fit();
    else if (key === 'Enter' || key === ' ') { if (this.current === null) this.go(this.first()); this.enter(); }
    else if (key.startsWith('Arrow')) this.go(this.next(key));
    else return;
    event.preventDefault();
  }

  first() { return this.layout.boxes.reduce((a, b) => (a.y < b.y || (a.y === b.y && a.x <= b.x) ? a : b)).index; }

  /** Down and up along the lines, left and right within a rank. */
  next(key) {
    if (this.current === null) return this.first();
    const box = this.byIndex.get(this.current);
    if (key === 'ArrowUp' || key === 'ArrowDown') {
      const near = key === 'ArrowUp'
        ? box.reads.map((index) => this.byIndex.get(index))
        : this.layout.boxes.filter((each) => each.reads.includes(box.index));
      const far = (each) => Math.abs(each.y - box.y) + Math.abs(each.x - box.x) / 1000;
      return near.length ? near.reduce((a, b) => (far(a) <= far(b) ? a : b)).index : box.index;
    }
    const side = key === 'ArrowRight' ? 1 : -1;
    const beside = this.layout.ranks[box.rank].filter((each) => !each.bend && side * (each.x - box.x) > 0);
    return beside.length ? beside.reduce((a, b) => (side * (a.x - b.x) <= 0 ? a : b)).index : box.index;
  }
}
