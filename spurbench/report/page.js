// Sorts and filters the leaderboard, and hands its numbers to plotly, which draws.
// Strings from data are only ever set as text (textContent, attributes), and escaped where plotly reads tags.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const ALL = "*"; // no name of a dataset or backbone
  const TITLES = {
    worst_group_accuracy: "WGA", accuracy: "accuracy", group_mean_accuracy: "group mean", epg: "EPG",
    mask_density: "mask density",
  };
  const CURVES = {
    val_wga: "validation WGA", val_accuracy: "validation accuracy", val_worst_class: "validation worst class",
    train_loss: "training loss",
  };
  const HEAT = {
    worst_group_accuracy: "WGA by number of stages", epg: "EPG by number of stages",
    mask_density: "mask density by number of stages", stage_density: "density of each stage's mask",
    stage_epg: "EPG of each stage's mask",
  };
  const MASKS = { stage: "stages", group: "stages and groups" };
  const DRAWS = { all: "every setting", best: "best on validation" };
  const MOST_BARS = 60, MOST_CURVES = 8, MOST_MAPS = 6, MOST_COLOURS = 8, MOST_GROUPS = 20; // more cannot be told apart
  const ABOUT_SOURCES = ["pretraining", "average", "source"]; // columns that tell published rows from each other
  const COLOURS = ["#3d8bd1", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#7f6fd6", "#a0653a", "#808890"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  // --- state: in the address, so that a view can be linked to --------------------------------------------------------

  const published = new Set(data.published.map((line) => line.setting));
  const values = (key, settings) => [...new Set(settings.map((setting) => setting[key]))].sort();
  const measured = data.settings.filter((_, i) => !published.has(i));
  const choices = {
    rule: data.rules, dataset: [...values("data", measured), ALL], backbone: [ALL, ...values("net", data.settings)],
    draws: Object.keys(DRAWS), beside: ["shown", "hidden"], apart: ["hidden", "shown"],
    sort: [...data.columns.map((column) => column.title), ""], order: ["descending", "ascending"],
    pareto: ["worst_group_accuracy", "epg"], heat: Object.keys(HEAT), curve: Object.keys(CURVES),
    masks: Object.keys(MASKS), theme: ["", "light", "dark"],
  };
  const first = (key) => choices[key][0];
  const defaults = {
    rule: first("rule"), dataset: first("dataset"), backbone: ALL, method: "", draws: first("draws"),
    beside: first("beside"), apart: first("apart"), sort: "", order: "descending",
    pareto: first("pareto"), heat: first("heat"), curve: first("curve"), masks: first("masks"), theme: "",
  };
  let state = read();

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    const found = { ...defaults };
    for (const [key, value] of given) {
      if (key === "method" || (Object.hasOwn(choices, key) && choices[key].includes(value))) found[key] = value;
    }
    return found;
  }

  function change(update) {
    state = { ...state, ...update };
    const link = new URLSearchParams(Object.entries(state).filter(([key, value]) => value !== defaults[key]));
    history.replaceState(null, "", `#${link}`);
    show();
  }

  // --- small helpers ------------------------------------------------------------------------------------------------

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  function fill(select, options, titles) {
    select.replaceChildren(...options.map((value, i) => element("option", { value, text: titles[i] })));
  }

  const cut = (text, most = 44) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  // plotly reads a few HTML tags and entities in labels: what data says is shown as it is.
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const literal = (text) => escape(cut(String(text)));
  // Labels beside an axis: of those that are too long both ends stay, for names often differ in their last words.
  const LETTER = 6.5; // pixels, about
  let room = 950; // width of plots, pixels
  const beside = (text, most) => escape(text.length > most
    ? `${text.slice(0, Math.ceil(0.64 * most) - 1)}…${text.slice(-Math.floor(0.36 * most))}` : text);
  const percent = (value, digits = 1) => (value === null || value === undefined ? "-" : (100 * value).toFixed(digits));
  const spread = ([mean, sd]) => percent(mean) + (sd === null ? "" : ` ± ${percent(sd)}`);
  const times100 = (value) => (value === null || value === undefined ? null : 100 * value);
  const setting = (line) => data.settings[line.setting];
  const colour = (i) => COLOURS[i % COLOURS.length];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function name(line, lines) {
    const several = (key) => new Set(lines.map((other) => setting(other)[key])).size > 1;
    const parts = [setting(line).name];
    if (several("data")) parts.push(setting(line).data);
    if (several("net")) parts.push(setting(line).net);
    return parts.join(" · ");
  }

  function mean(numbers) {
    const there = numbers.filter((value) => value !== null && value !== undefined);
    return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
  }

  // --- the table ----------------------------------------------------------------------------------------------------

  const column = (title) => data.columns.findIndex((other) => other.title === title);

  // Why a line is not ranked with the others; among the draws that validation chose it may be another reason.
  const reason = (line) => (state.draws === "best" && line.best ? line.best.apart : line.apart);

  function withDraws(line) {
    if (state.draws !== "best" || !line.best) return line;
    const put = (list, value) => list.map((other, i) => (i === column("draws") ? value : other));
    return { ...line, cells: put(line.cells, String(line.best.draws)), keys: put(line.keys, line.best.draws) };
  }

  function fits(line) {
    const words = state.method.toLowerCase().split(/,(?![^[]*\])/).map((word) => word.trim()).filter(Boolean);
    const { data: place, net, name, among = [] } = setting(line);
    return (state.dataset === ALL || place === state.dataset || among.includes(state.dataset)) &&
      (state.backbone === ALL || net === state.backbone || among.includes(state.backbone)) &&
      (!words.length || words.some((word) => name.toLowerCase().includes(word)));
  }

  // What the table has before its filters: a draw that was not chosen is no setting of its own then.
  const listed = () => data.tables[state.rule].filter((line) => state.draws === "all" || line.best || line.apart);

  function shown() {
    const lines = listed().filter((line) => fits(line) && (state.apart === "shown" || !reason(line))).map(withDraws);
    if (state.beside === "shown") lines.push(...data.published.filter(fits));
    const number = column(state.sort);
    if (number < 0) {
      // By dataset and backbone; backbones with published rows alone come last, and published rows last of theirs.
      const block = (line) => `${setting(line).data}\n${setting(line).net}`;
      const ours = new Set(lines.filter((line) => !line.published).map(block));
      const kind = (line) => (line.published ? 2 : reason(line) ? 1 : 0);
      const places = new Map(lines.map((line) =>
        [line, [setting(line).data, ours.has(block(line)) ? 0 : 1, setting(line).net, kind(line)]]));
      const order = (x, y) => (x < y ? -1 : x > y ? 1 : 0);
      return lines.sort((a, b) => places.get(a).reduce((found, x, i) => found || order(x, places.get(b)[i]), 0));
    }
    const sign = state.order === "ascending" ? 1 : -1;
    const text = data.columns[number].kind === "text";
    const key = (line) => (text ? line.cells[number] : line.keys[number]);
    return [...lines].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is unknown comes last, either way
      return sign * (text ? x.localeCompare(y, "en") : x - y);
    });
  }

  function heads() {
    byId("board").tHead.rows[0].replaceChildren(
      ...data.columns.map((column) => {
        const button = element("button", { type: "button", text: column.title, title: column.meaning });
        button.addEventListener("click", () => {
          const usual = column.kind === "text" ? "ascending" : "descending";
          const other = usual === "ascending" ? "descending" : "ascending";
          change({ sort: column.title, order: state.sort === column.title && state.order === usual ? other : usual });
        });
        return element("th", { scope: "col", class: column.kind }, button);
      }),
    );
  }

  function table(lines) {
    const same = (key) => lines.length > 0 && new Set(lines.map((line) => setting(line)[key])).size === 1;
    const alike = { dataset: same("data"), backbone: same("net") }; // one value in every line: the caption says it
    const beside = lines.filter((line) => line.published);
    for (const title of ABOUT_SOURCES) alike[title] = !beside.length;
    [...byId("board").tHead.rows[0].cells].forEach((cell, i) => {
      cell.hidden = Boolean(alike[data.columns[i].title]);
      if (data.columns[i].title === state.sort) cell.setAttribute("aria-sort", state.order);
      else cell.removeAttribute("aria-sort");
    });
    byId("board").tBodies[0].replaceChildren(
      ...lines.map((line) => {
        const row = { class: line.published ? "published" : reason(line) ? "apart" : "" };
        if (reason(line)) row.title = `not ranked: ${reason(line)}`;
        return element("tr", row, ...line.cells.map((text, i) => {
          const kind = data.columns[i].kind;
          const mark = reason(line) ? " (not ranked)" : "";
          if (i === 0) return element("th", { scope: "row" }, element("span", { text: text + mark }));
          const properties = { class: kind, text };
          if (kind === "text" && text.length > 30) properties.title = text;
          if (data.columns[i].title === "WGA 95 %" && line.doubt) properties.title = line.doubt;
          if (alike[data.columns[i].title]) properties.hidden = "";
          return element("td", properties);
        }));
      }),
    );
    const place = alike.dataset ? setting(lines[0]).data : "several datasets";
    const net = alike.backbone ? setting(lines[0]).net : "several backbones";
    byId("board").caption.textContent = lines.length
      ? `${cut(place)}, ${cut(net)}, selection rule ${cut(state.rule)}` : "No setting fits these choices.";
    byId("count").textContent = `${lines.length - beside.length} of ${listed().length} settings` +
      (beside.length ? ` and ${beside.length} published` : "");
    apart();
  }

  // Every line that is not ranked with the others, and why.
  function apart() {
    const lines = listed().filter((line) => fits(line) && reason(line));
    const runs = lines.reduce((sum, line) => sum + line.keys[column("seeds")], 0);
    byId("apart-lines").hidden = !lines.length;
    byId("apart-lines").querySelector("summary").textContent =
      `${lines.length} settings (${runs} runs) are not ranked with the others`;
    byId("apart-lines").querySelector("ul").replaceChildren(...lines.map((line) => element("li", {
      text: `${setting(line).name} on ${setting(line).data}, ${setting(line).net}, ` +
        `${line.keys[column("seeds")]} runs: ${reason(line)}`,
    })));
  }

  // --- plots: each gives what plotly draws and the same numbers as a table -------------------------------------------

  const plots = [
    {
      id: "pareto", title: "What it costs", options: ["pareto", (key) => TITLES[key]],
      about: "Against multiply-adds per image beyond the plain backbone. On the line: no cheaper setting is better; " +
        "names that would cover each other are in the numbers below. Circles: EPG is of the method's own mask; diamonds: " +
        "of an attribution; crosses: not ranked. Whiskers: of WGA its 95 % interval, of EPG one s.d.",
      none: "no setting in the table has its cost and this number measured.",
      make: pareto,
    },
    {
      id: "groups", title: "Accuracy per group",
      about: `Test accuracy of each group, percent: means over seeds, whiskers one s.d. The first ${MOST_BARS} settings ` +
        `of the table, in its order. More than ${MOST_COLOURS} groups become a map, and of more than ${MOST_GROUPS} the worst are shown.`,
      none: "no setting in the table has its results by group here.",
      make: groups,
    },
    {
      id: "heat", title: "Target density τ and stages", options: ["heat", (key) => HEAT[key]],
      about: "Settings that differ in nothing but τ and the number of stages share a map; percent, mean over seeds.",
      none: "it takes settings in the table that differ in nothing but τ and the number of stages.",
      make: heat,
    },
    {
      id: "density", title: "Mask density through training", options: ["masks", (key) => MASKS[key]],
      about: "Active fraction of each stage's mask on validation images, percent (stage 0 is the deepest): thick lines " +
        `are means over seeds, thin lines are seeds. The first ${MOST_CURVES} settings of the table with masks; of the ` +
        "first one alone where groups are shown.",
      none: "it takes methods with a mask, and folders of runs; a Parquet table has no epochs.",
      make: density,
    },
    {
      id: "curves", title: "Training curves", options: ["curve", (key) => CURVES[key]],
      about: "Thick lines are means over seeds, thin lines are seeds; phases follow each other. The first " +
        `${MOST_CURVES} settings of the table.`,
      none: "it takes folders of runs; a Parquet table has no epochs.",
      make: curves,
    },
    {
      id: "erasure", title: "Do masks tell the truth?",
      about: "Percent of predictions that stay when a part of the image becomes the mean colour. Of a mask that shows " +
        "what decides, erasing the outside changes nothing, and erasing the inside or outside another image's mask does.",
      none: "it takes methods with a mask that was tested by erasure.",
      make: erasure,
    },
  ];

  function pareto(lines) {
    const metric = state.pareto;
    const there = lines.filter((line) => setting(line).overhead !== null && line.values[metric][0] !== null);
    const blocks = [...new Set(there.map((line) => `${setting(line).data}\n${setting(line).net}`))];
    const free = places(there.map((line) => [setting(line).overhead, 100 * line.values[metric][0]]));
    const traces = blocks.flatMap((block, i) => {
      const mine = there.filter((line) => `${setting(line).data}\n${setting(line).net}` === block);
      const [front, edge] = frontier(mine.filter((line) => !reason(line)), metric);
      const title = blocks.length > 1 ? literal(block.replace("\n", " · ")) : "";
      return [
        {
          type: "scatter", mode: "lines", x: edge.map((p) => p[0]), y: edge.map((p) => p[1]), hoverinfo: "skip",
          line: { color: colour(i), width: 1.5, shape: "hv" }, name: `${title} best for its cost`.trim(),
        },
        {
          type: "scatter", mode: "markers+text", name: title || "settings", showlegend: blocks.length > 1,
          x: mine.map((line) => setting(line).overhead), y: mine.map((line) => times100(line.values[metric][0])),
          error_y: {
            type: "data", symmetric: false, array: mine.map((line) => whisker(line, metric, 1)),
            arrayminus: mine.map((line) => whisker(line, metric, 0)), thickness: 1, width: 0, color: css("--faint"),
          },
          marker: {
            color: colour(i), size: 9,
            symbol: mine.map((line) => (reason(line) ? "x" : setting(line).source === "mask" ? "circle" : "diamond-open")),
          },
          text: mine.map((line) => (front.includes(line) && free(line, metric) ? beside(setting(line).name, 26) : "")),
          textposition: "bottom right", cliponaxis: false, hoverinfo: "text",
          hovertext: mine.map((line) =>
            `${literal(name(line, there))}<br>${TITLES[metric]} ${spread(line.values[metric])}${interval(line, metric)}` +
            `<br>GMACs ${setting(line).overhead >= 0 ? "+" : ""}${setting(line).overhead}`),
        },
      ];
    });
    return {
      traces, empty: !there.length,
      layout: {
        height: 420, xaxis: { title: { text: "GMACs over the plain backbone" } },
        yaxis: { title: { text: `${TITLES[metric]}, percent` } },
        legend: { orientation: "h", y: 1, yanchor: "bottom" },
      },
      numbers: [
        ["method", "GMACs over the backbone", TITLES[metric], "95 %", "EPG of", "best for its cost"],
        ...there.map((line) => {
          const block = there.filter((other) => !reason(other) &&
            setting(other).data === setting(line).data && setting(other).net === setting(line).net);
          return [name(line, there), setting(line).overhead, spread(line.values[metric]), interval(line, metric).trim() || "-",
            setting(line).source || "-",
            frontier(block, metric)[0].includes(line) ? "yes" : "no"];
        }),
      ],
    };
  }

  // Tells whether a label beside a point would cover none that was asked for before, on a plot of these points.
  function places(points) {
    const spread = (k) => Math.max(...points.map((p) => p[k])) - Math.min(...points.map((p) => p[k])) || 1;
    const [perX, perY] = [(room - 120) / (1.1 * spread(0)), 280 / (1.1 * spread(1))]; // pixels
    const taken = [];
    return (line, metric) => {
      const [x, y] = [setting(line).overhead * perX, 100 * line.values[metric][0] * perY];
      const clear = taken.every((other) => Math.abs(x - other.x) > 26 * LETTER || Math.abs(y - other.y) > 14);
      if (clear) taken.push({ x, y });
      return clear;
    };
  }

  // How far the mean may be off, in points: by its interval (end 0 or 1), else by the s.d.
  function whisker(line, metric, end) {
    if (metric === "worst_group_accuracy") {
      const [value, bound] = [line.values[metric][0], line.interval[end]];
      return bound === null ? 0 : 100 * Math.abs(bound - value);
    }
    return times100(line.values[metric][1]) || 0;
  }

  const interval = (line, metric) => (metric === "worst_group_accuracy" && line.interval[0] !== null
    ? ` [${percent(line.interval[0])}, ${percent(line.interval[1])}]` : "");

  // Settings that no cheaper or equally dear one beats, and the corners of the line through them.
  function frontier(lines, metric) {
    const value = (line) => line.values[metric][0];
    const sorted = [...lines].sort((a, b) => setting(a).overhead - setting(b).overhead || value(b) - value(a));
    const front = [];
    for (const line of sorted) if (!front.length || value(line) > value(front[front.length - 1])) front.push(line);
    const edge = front.map((line) => [setting(line).overhead, 100 * value(line)]);
    if (edge.length) edge.push([setting(sorted[sorted.length - 1]).overhead, edge[edge.length - 1][1]]);
    return [front, edge];
  }

  const longest = () => Math.max(12, Math.min(44, Math.floor((0.4 * room) / LETTER))); // letters of a label

  // Horizontal bars, the first line on top; one trace per part.
  function bars(lines, parts, pair) {
    const y = lines.map((_, i) => i);
    const traces = parts.map((part, k) => ({
      type: "bar", orientation: "h", name: literal(part), y, x: lines.map((line) => times100(pair(line, k)[0])),
      error_x: {
        type: "data", array: lines.map((line) => times100(pair(line, k)[1]) || 0), thickness: 1, width: 2,
        color: css("--faint"),
      },
      marker: { color: colour(k) }, hoverinfo: "text",
      hovertext: lines.map((line) => `${literal(name(line, lines))}<br>${literal(part)} ${spread(pair(line, k))}`),
    }));
    const layout = {
      height: 110 + lines.length * (10 + 9 * parts.length), barmode: "group", bargap: 0.25,
      xaxis: { title: { text: "percent" }, range: [0, 102] },
      yaxis: { tickvals: y, ticktext: lines.map((line) => beside(name(line, lines), longest())), autorange: "reversed", zeroline: false },
      legend: { orientation: "h", y: 1, yanchor: "bottom", traceorder: "normal" },
    };
    const compact = Math.max(620, 110 + lines.length * 14);
    const numbers = [["method", ...parts], ...lines.map((line) =>
      [name(line, lines), ...parts.map((_, k) => spread(pair(line, k)))])];
    return { traces, layout, numbers, compact, empty: !lines.length || !parts.length };
  }

  // Accuracy of a group by its name, of one line: [mean, s.d.].
  function byName(line) {
    const { names } = data.group_sets[line.groups.set];
    return new Map(names.map((group, i) => [group, line.groups.accuracy[i]]));
  }

  function groups(all) {
    const lines = all.filter((line) => line.groups).slice(0, MOST_BARS);
    const known = new Map(lines.map((line) => [line, byName(line)]));
    const pair = (line, group) => known.get(line).get(group) || [null, null];
    const every = [...new Set(lines.flatMap((line) => [...known.get(line).keys()]))];
    if (every.length <= MOST_COLOURS) return bars(lines, every, (line, k) => pair(line, every[k]));
    const average = new Map(every.map((group) => [group, mean(lines.map((line) => pair(line, group)[0]))]));
    const sorted = [...every].sort((a, b) => average.get(a) - average.get(b));
    const worst = every.length > MOST_GROUPS ? sorted.slice(0, MOST_GROUPS) : every;
    const rest = sorted.slice(MOST_GROUPS);
    const note = rest.length ? `The worst ${MOST_GROUPS} of ${every.length} groups, by their mean over these settings; the other ` +
      `${rest.length} are at ${percent(average.get(rest[0]))} percent or above on average.` : "";
    const cells = lines.map((line) => worst.map((group) => times100(pair(line, group)[0])));
    const rows = lines.map((line) => name(line, lines));
    const drawn = maps([{ title: "", rows, columns: worst, cells }], "accuracy");
    drawn.layout.yaxis = { ...drawn.layout.yaxis, autorange: "reversed" }; // in the table's order
    return { ...drawn, note, numbers: [["method", ...worst],
      ...lines.map((line, i) => [rows[i], ...worst.map((group) => spread(pair(line, group)))])] };
  }

  function erasure(all) {
    const lines = all.filter((line) => line.erased).slice(0, MOST_BARS);
    return bars(lines, ["outside erased", "inside erased", "control: outside another image's mask"],
      (line, k) => line.erased[k]);
  }

  function tau(line) {
    const value = setting(line).tau;
    return typeof value === "number" ? `${+(100 * value).toPrecision(4)}%` : value === null ? "-" : value;
  }

  function heat(lines) {
    const perStage = state.heat.startsWith("stage_");
    const families = new Map();
    for (const line of lines) {
      if (setting(line).stages === null || (perStage && !line.stages.length)) continue;
      const { family } = setting(line);
      families.set(family, [...(families.get(family) || []), line]);
    }
    return maps([...families.values()].filter((family) => family.length > 1)
      .sort((a, b) => b.length - a.length).slice(0, MOST_MAPS)
      .map((family) => (perStage ? byStage(family) : byNumber(family))), HEAT[state.heat]);
  }

  // Heat maps on one scale, as many side by side as can be read: {title, rows, columns, cells}, in percent.
  function maps(drawn, what) {
    const all = drawn.flatMap((map) => map.cells.flat()).filter((value) => value !== null);
    const low = Math.min(...all), high = Math.max(...all, low + 1);
    const traces = [], annotations = [], layout = {};
    const numbers = [["map", "row", "column", what]];
    const write = (value) => (value === null ? "" : value.toFixed(1));
    const letters = Math.min(drawn.length > 1 ? 24 : 44, longest());
    const label = (text) => beside(String(text), letters);
    const most = (count) => Math.max(1, ...drawn.map(count));
    // In pixels; behind the first column of maps stand labels and the colours' scale as well.
    const gap = 30 + LETTER * Math.min(letters, most((map) => Math.max(...map.rows.map((row) => row.length))));
    const inside = Math.max(120, room - 120 - gap), least = Math.max(180, 46 * most((map) => map.columns.length));
    const across = Math.max(1, Math.min(drawn.length, Math.floor((inside + gap) / (least + gap))));
    const width = (inside - gap * (across - 1)) / across;
    const lines = Array.from({ length: Math.ceil(drawn.length / across) }, (_, r) => drawn.slice(r * across, (r + 1) * across));
    const heights = lines.map((line) => Math.max(...line.map(({ rows }) => Math.max(40, (rows.length > 12 ? 20 : 34) * rows.length))));
    const tops = heights.map((_, r) => heights.slice(0, r).reduce((sum, height) => sum + height + 90, 0));
    const whole = lines.length ? tops[tops.length - 1] + heights[heights.length - 1] : 1;
    layout.height = 150 + whole;
    drawn.forEach((map, i) => {
      const suffix = i ? String(i + 1) : "";
      const left = ((i % across) * (width + gap)) / inside, r = Math.floor(i / across);
      const right = Math.min(1, left + width / inside), top = 1 - tops[r] / whole;
      const height = heights[r] / whole;
      traces.push({
        type: "heatmap", z: map.cells, x: map.columns.map((_, k) => k), y: map.rows.map((_, k) => k),
        xaxis: `x${suffix}`, yaxis: `y${suffix}`, zmin: low, zmax: high, colorscale: "Cividis", showscale: i === 0,
        colorbar: { title: { text: "percent" }, thickness: 15 }, hoverinfo: "text", xgap: 2, ygap: 2, hoverongaps: false,
        hovertext: map.cells.map((row, r) => row.map((value, c) =>
          `${literal(map.title)}<br>${literal(map.rows[r])}, ${literal(map.columns[c])}: ${write(value) || "-"}`)),
      });
      const known = map.cells.flatMap((row, r) => row.map((value, c) => ({ value, r, c }))).filter(({ value }) => value !== null);
      traces.push({
        type: "scatter", mode: "text", x: known.map(({ c }) => c), y: known.map(({ r }) => r), xaxis: `x${suffix}`,
        yaxis: `y${suffix}`, text: known.map(({ value }) => write(value)), hoverinfo: "skip", showlegend: false,
        textfont: { color: known.map(({ value }) => (value > low + 0.55 * (high - low) ? "#1b1f24" : "#ffffff")) },
      });
      numbers.push(...known.map(({ value, r, c }) => [map.title, map.rows[r], map.columns[c], write(value)]));
      annotations.push({
        text: beside(map.title, Math.floor((width + gap / 2) / LETTER)), showarrow: false, xref: "paper", yref: "paper",
        x: (left + right) / 2, y: top, xanchor: "center", yanchor: "bottom",
      });
      layout[`xaxis${suffix}`] = {
        domain: [left, right], anchor: `y${suffix}`, tickvals: map.columns.map((_, k) => k),
        ticktext: map.columns.map(literal), showgrid: false, zeroline: false,
      };
      layout[`yaxis${suffix}`] = {
        domain: [Math.max(0, top - height), top], anchor: `x${suffix}`, tickvals: map.rows.map((_, k) => k),
        ticktext: map.rows.map(label), showgrid: false, zeroline: false,
      };
    });
    return { traces, layout: { ...layout, annotations }, numbers, empty: !all.length };
  }

  const mapTitle = (family) => {
    const stem = setting(family[0]).label.replace(/\[.*$/, "");
    return `${stem} · ${setting(family[0]).data} · ${setting(family[0]).net}`;
  };
  const byTau = (a, b) => {
    const [x, y] = [setting(a).tau, setting(b).tau];
    if (typeof x === "number" && typeof y === "number") return x - y;
    return (typeof x === "number" ? 0 : 1) - (typeof y === "number" ? 0 : 1) || String(x).localeCompare(String(y), "en");
  };

  function byNumber(family) {
    const taus = [...new Set([...family].sort(byTau).map(tau))];
    const counts = [...new Set(family.map((line) => setting(line).stages))].sort((a, b) => a - b);
    const cells = taus.map((t) => counts.map((count) => {
      const line = family.find((other) => tau(other) === t && setting(other).stages === count);
      return line ? times100(line.values[state.heat][0]) : null;
    }));
    const plural = (count) => `${count} stage${count === 1 ? "" : "s"}`;
    return { title: mapTitle(family), rows: taus.map((t) => `τ ${t}`), columns: counts.map(plural), cells };
  }

  function byStage(family) {
    const lines = [...family].sort((a, b) => setting(a).stages - setting(b).stages || byTau(a, b));
    const stages = Math.max(...lines.map((line) => line.stages.length));
    const key = state.heat === "stage_epg" ? "epg" : "density";
    const columns = Array.from({ length: stages }, (_, s) => (s ? `stage ${s}` : "stage 0 (deepest)"));
    const cells = lines.map((line) => columns.map((_, s) => (line.stages[s] ? times100(line.stages[s][key][0]) : null)));
    return { title: mapTitle(family), rows: lines.map((line) => setting(line).name), columns, cells };
  }

  // Lines over epochs: one thick mean and thin seeds per entry of `drawn`: {title, runs: [{epochs, phases, values}]}.
  function overEpochs(drawn, unit, scale) {
    const traces = [], numbers = [["curve", "epoch", "phase", unit, "seeds"]];
    drawn.forEach(({ title, runs, tint, dash }) => {
      const points = new Map();
      for (const run of runs) {
        traces.push({
          type: "scatter", mode: "lines", x: run.epochs, y: run.values.map((value) => (value === null ? null : scale * value)),
          line: { color: tint, width: 0.7, dash }, opacity: 0.45, hoverinfo: "skip", showlegend: false,
        });
        run.epochs.forEach((epoch, i) => {
          const point = points.get(epoch) || { values: [], phase: run.phases[i] };
          point.values.push(run.values[i]);
          points.set(epoch, point);
        });
      }
      const epochs = [...points.keys()].sort((a, b) => a - b);
      const means = epochs.map((epoch) => mean(points.get(epoch).values));
      traces.push({
        type: "scatter", mode: "lines+markers", x: epochs, y: means.map((value) => (value === null ? null : scale * value)),
        line: { color: tint, width: 2.5, dash }, marker: { size: 4 }, name: literal(title), hoverinfo: "text",
        hovertext: epochs.map((epoch, i) =>
          `${literal(title)}<br>epoch ${epoch} (${literal(points.get(epoch).phase)}): ${means[i] === null ? "-" : (scale * means[i]).toFixed(scale === 1 ? 3 : 1)}`),
      });
      epochs.forEach((epoch, i) => {
        if (means[i] === null) return;
        const count = points.get(epoch).values.filter((value) => value !== null).length;
        numbers.push([title, epoch, points.get(epoch).phase, (scale * means[i]).toFixed(scale === 1 ? 3 : 1), count]);
      });
    });
    const layout = { height: 420, xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: unit } } };
    if (room < 700) { // names below the plot instead of beside it
      layout.legend = { orientation: "h", y: -0.3, yanchor: "top" };
      layout.height += 20 * drawn.length;
    }
    return { traces, layout, numbers, empty: numbers.length === 1 };
  }

  function curves(all) {
    const key = state.curve;
    const lines = all.filter((line) => setting(line).curves.some((run) => key in run.series)).slice(0, MOST_CURVES);
    const drawn = lines.map((line, i) => ({
      title: name(line, lines), tint: colour(i), dash: DASHES[0],
      runs: setting(line).curves.filter((run) => key in run.series).map((run) => ({ ...run, values: run.series[key] })),
    }));
    const loss = key === "train_loss";
    return overEpochs(drawn, loss ? CURVES[key] : `${CURVES[key]}, percent`, loss ? 1 : 100);
  }

  function density(all) {
    const lines = all.filter((line) => setting(line).curves.some((run) => run.density.length)).slice(0, MOST_CURVES);
    if (state.masks === "group") return densityOfGroups(lines);
    const drawn = lines.flatMap((line, i) => {
      const runs = setting(line).curves;
      const stages = Math.max(...runs.map((run) => run.density.length));
      return Array.from({ length: stages }, (_, s) => ({
        title: `${cut(name(line, lines), 34)} stage ${s}`, tint: colour(i), dash: DASHES[s % DASHES.length],
        runs: runs.filter((run) => run.density[s]).map((run) => ({ ...run, values: run.density[s] })),
      }));
    });
    return overEpochs(drawn, "mask density, percent", 100);
  }

  // One setting's: a colour per group, a dash per stage.
  function densityOfGroups(lines) {
    const line = lines.find((other) => setting(other).curves.some((run) => run.by_group.length));
    if (!line) return overEpochs([], "mask density, percent", 100);
    const runs = setting(line).curves.filter((run) => run.by_group.length);
    const { numbers, names } = line.groups ? data.group_sets[line.groups.set] : { numbers: [], names: [] };
    const count = runs[0].by_group[0].length;
    const drawn = runs[0].by_group.flatMap((_, s) => Array.from({ length: Math.min(count, MOST_COLOURS) }, (_, g) => ({
      title: `${cut(numbers.includes(g) ? names[numbers.indexOf(g)] : `group ${g}`, 34)} stage ${s}`, tint: colour(g),
      dash: DASHES[s % DASHES.length],
      runs: runs.filter((run) => run.by_group[s] && run.by_group[s][g])
        .map((run) => ({ ...run, values: run.by_group[s][g] })),
    })));
    const note = `${setting(line).name} on ${setting(line).data}` +
      (count > MOST_COLOURS ? `: the first ${MOST_COLOURS} of ${count} groups` : "");
    return { ...overEpochs(drawn, "mask density, percent", 100), note };
  }

  // --- figures ------------------------------------------------------------------------------------------------------

  function figures() {
    for (const plot of plots) {
      const heading = element("h2", { id: `${plot.id}-title`, text: plot.title });
      const figure = element("figure", { "aria-labelledby": heading.id });
      if (plot.options) {
        const [key, title] = plot.options;
        const select = element("select", { id: key });
        fill(select, choices[key], choices[key].map(title));
        select.addEventListener("change", () => change({ [key]: select.value }));
        figure.append(element("label", { text: "Shown: " }, select));
      }
      figure.append(
        element("figcaption", { text: plot.about }),
        element("div", { class: "plot", id: `plot-${plot.id}`, role: "img" }),
        element("p", { class: "note" }),
        element("p", { class: "none", text: `Nothing to draw: ${plot.none}` }),
        element("details", {}, element("summary", { text: `Numbers of this plot: ${plot.title}` }),
          element("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": heading.id },
            element("table", { "aria-label": `Numbers: ${plot.title}` }))),
      );
      byId("plots").append(element("section", { "aria-labelledby": heading.id }, heading, figure));
    }
  }

  function draw(lines, printing) {
    room = printing ? 950 : byId("plots").clientWidth; // A4
    const look = { color: css("--ink"), gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
    for (const plot of plots) {
      const { traces, layout, numbers, compact, empty, note } = plot.make(lines);
      const target = byId(`plot-${plot.id}`), figure = target.parentElement;
      target.hidden = empty;
      figure.querySelector(".none").hidden = !empty;
      figure.querySelector(".note").hidden = empty || !note;
      figure.querySelector(".note").textContent = note || "";
      figure.querySelector("details").hidden = empty;
      target.setAttribute("aria-label", `Plot: ${plot.title}. Its numbers are in the table below it.`);
      if (empty) {
        Plotly.purge(target);
        figure.querySelector("table").replaceChildren();
        continue;
      }
      for (const key of Object.keys(layout)) if (/^[xy]axis/.test(key)) layout[key] = { ...look, ...layout[key] };
      const all = {
        margin: { l: 60, r: 20, t: 40, b: 50 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent") },
        font: { color: css("--ink"), family: 'system-ui, "DejaVu Sans", sans-serif', size: 12 }, hovermode: "closest",
        ...layout, ...(printing ? { width: room, height: Math.min(layout.height, compact || Infinity) } : {}),
      };
      const buttons = [["toImage", "zoom2d", "resetScale2d"]];
      Plotly.react(target, traces, all, {
        responsive: !printing, displaylogo: false, modeBarButtons: buttons, toImageButtonOptions: { format: "svg", filename: plot.id },
      });
      const [head, ...rows] = numbers;
      figure.querySelector("table").replaceChildren(
        element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", text: cut(text, 60) })))),
        element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) =>
          element(i ? "td" : "th", i ? { text: cut(String(text), 60) } : { scope: "row", text: cut(String(text), 60) }))))),
      );
    }
  }

  function galleries() {
    for (const { title, alt, png } of data.galleries) {
      const whole = { class: "scroll", role: "region", tabindex: "0", "aria-label": title }; // captions stay legible
      byId("galleries").append(element("figure", {}, element("div", whole, element("img", { src: png, alt })),
        element("figcaption", { text: title })));
    }
  }

  function chooseGalleries() {
    const none = "No pictures here: they need the weights of a run, in a folder of results on the machine that made this page.";
    const chosen = (value, choice) => choice === ALL || value === choice;
    const figures = [...byId("galleries").querySelectorAll("figure")];
    figures.forEach((figure, i) => {
      const { dataset, backbone } = data.galleries[i];
      figure.hidden = !(chosen(dataset, state.dataset) && chosen(backbone, state.backbone));
    });
    byId("no-gallery").hidden = figures.some((figure) => !figure.hidden);
    byId("no-gallery").textContent = figures.length ? "No pictures of this dataset and backbone; the page has some of others." : none;
  }

  // --- all together -------------------------------------------------------------------------------------------------

  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (state.theme ? state.theme === "dark" : system.matches);
  let waiting = 0;

  function show(now = false) {
    for (const key of ["rule", "dataset", "backbone", "method", "draws", "pareto", "heat", "curve", "masks"]) {
      if (byId(key).value !== state[key]) byId(key).value = state[key];
    }
    for (const key of ["beside", "apart"]) byId(key).checked = state[key] === "shown";
    if (state.theme) document.documentElement.dataset.theme = state.theme;
    else delete document.documentElement.dataset.theme;
    byId("theme").textContent = dark() ? "Light colours" : "Dark colours";
    const lines = shown();
    table(lines);
    chooseGalleries();
    clearTimeout(waiting); // a table follows every key, plots follow a pause
    if (now) draw(lines, false);
    else waiting = setTimeout(() => draw(lines, false), 150);
  }

  function start() {
    byId("summary").textContent = `${data.runs} runs of ${measured.length} settings` +
      (data.problems.length ? `; ${data.problems.length} notes below the table` : "");
    byId("intervals").textContent = data.intervals.join(" ");
    byId("problems").hidden = !data.problems.length;
    byId("problems").querySelector("ul").replaceChildren(...data.problems.map((text) => element("li", { text })));
    byId("published").hidden = !data.published.length;
    byId("beside").parentElement.hidden = !data.published.length;
    byId("apart").parentElement.hidden =
      !Object.values(data.tables).flat().some((line) => line.apart || (line.best && line.best.apart));
    fill(byId("rule"), choices.rule, choices.rule.map((value) => cut(value)));
    fill(byId("dataset"), choices.dataset, choices.dataset.map((value) => (value === ALL ? "all" : cut(value))));
    fill(byId("backbone"), choices.backbone, choices.backbone.map((value) => (value === ALL ? "all" : cut(value))));
    fill(byId("draws"), choices.draws, choices.draws.map((key) => DRAWS[key]));
    heads();
    figures();
    galleries();
    for (const key of ["rule", "dataset", "backbone", "draws"]) byId(key).addEventListener("change", () => change({ [key]: byId(key).value }));
    for (const key of ["beside", "apart"]) {
      byId(key).addEventListener("change", () => change({ [key]: byId(key).checked ? "shown" : "hidden" }));
    }
    byId("method").addEventListener("input", () => change({ method: byId("method").value }));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("theme").addEventListener("click", () => change({ theme: dark() ? "light" : "dark" }));
    system.addEventListener("change", () => show());
    let width = innerWidth;
    addEventListener("resize", () => { // labels are as long as there is room; on telephones heights change all the time
      if (innerWidth !== width) show();
      width = innerWidth;
    });
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address holds the view
      document.querySelector("[aria-labelledby=board-title] .scroll").focus();
    });
    addEventListener("hashchange", () => { state = read(); show(); });
    const lists = ["apart-lines", "problems"].map(byId);
    addEventListener("beforeprint", () => {
      document.documentElement.dataset.theme = "light"; // paper is white
      for (const list of lists) { // paper cannot be clicked
        list.dataset.open = list.open ? "yes" : "";
        list.open = true;
      }
      draw(shown(), true);
    });
    addEventListener("afterprint", () => {
      for (const list of lists) list.open = Boolean(list.dataset.open);
      show(true);
    });
    show(true);
    document.documentElement.dataset.ready = "yes";
  }

  start();
})();
