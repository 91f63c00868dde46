"use strict";
// Text from the data reaches the page through createTextNode alone, so it stays text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20;
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;

  const element = (tag, name, ...children) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    for (const child of children) {
      made.append(typeof child === "string" ? document.createTextNode(child) : child);
    }
    return made;
  };

  const picture = (character) => {
    const code = character.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    if (code === 127) return "\u2421";
    return "[U+" + code.toString(16).toUpperCase().padStart(4, "0") + "]";
  };

  const addVisible = (parent, text) => {
    let start = 0;
    for (let i = 0; i < text.length; i++) {
      if (!HIDDEN.test(text[i])) continue;
      if (i > start) parent.append(text.slice(start, i));
      parent.append(element("span", "ctl", picture(text[i])));
      start = i + 1;
    }
    if (start < text.length) parent.append(text.slice(start));
  };

  const addText = (parent, text, query) => {
    const lower = query ? text.toLowerCase() : "";
    let start = 0;
    // A lower-cased text of another length can't be marked by position.
    if (query && lower.length === text.length) {
      for (let at; (at = lower.indexOf(query, start)) >= 0; start = at + query.length) {
        addVisible(parent, text.slice(start, at));
        const mark = element("mark");
        addVisible(mark, text.slice(at, at + query.length));
        parent.append(mark);
      }
    }
    addVisible(parent, text.slice(start));
    return parent;
  };

  const textBox = (name, value, query) => {
    const box = addText(element("div", "text " + name), value.text, query);
    if (value.more) {
      box.append(element("span", "cut", ` … ${value.more.toLocaleString("en")} more characters`));
    }
    return box;
  };

  const shown = (value) =>
    typeof value !== "number" ? String(value ?? "–")
      : Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3);

  const candidates = (row, query) => {
    const rewards = row.candidates.map((c) => c.reward ?? 0);
    const low = Math.min(...rewards), span = Math.max(...rewards) - low || 1;
    const list = element("details", "", element("summary", "", `${rewards.length} candidates`));
    for (const c of row.candidates) {
      const bar = element("div", "bar");
      bar.style.width = `${Math.max(2, (100 * ((c.reward ?? low) - low)) / span)}%`;
      const who = element("div", "who", c.source, c.finished ? "" : " (cut)", element("br"),
        `reward ${shown(c.reward)}`, element("br"),
        `log-ratio ${shown(c.log_ratio)}, ${shown(c.tokens)} tokens`, bar);
      for (const role of c.roles) who.prepend(element("span", "tag " + role, role), " ");
      list.append(element("div", "candidate", who, textBox("", c, query)));
    }
    return list;
  };

  const details = (row, columns) => {
    const header = element("tr", "", ...columns.map((name) => scoped("col", name)));
    const body = row.details.map(([first, ...others]) => element("tr", "",
      scoped("row", shown(first)), ...others.map((value) => element("td", "", shown(value)))));
    const box = element("div", "scroll", element("table", "",
      element("thead", "", header), element("tbody", "", ...body)));
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Rounds of pair " + row.id);
    return element("details", "", element("summary", "", "Round by round"), box);
  };

  const scoped = (scope, text) => {
    const cell = element("th", "", text);
    cell.scope = scope;
    return cell;
  };

  const card = (row, query, columns) => {
    const top = element("div", "top");
    for (const tag of row.shown) top.append(element("span", "tag " + tag.split(" ")[0], tag));
    for (const [label, value] of row.numbers) {
      top.append(element("span", "", label + " ", element("b", "", shown(value))));
    }
    top.append(element("h3", "", "pair ", addText(element("code"), row.id, query)));
    const side = (kind, title, value) =>
      element("div", "side " + kind, element("h4", "", title), textBox("", value, query));
    const made = element("article", "card", top, textBox("prompt", row.prompt, query),
      element("div", "sides", side("good", "chosen", row.chosen),
        side("poor", "rejected", row.rejected)));
    if (row.details.length) made.append(details(row, columns));
    if (row.candidates.length) made.append(candidates(row, query));
    return made;
  };

  const searchable = (row) => {
    if (row.searchable === undefined) {
      row.searchable = [row.id, row.prompt.text, row.chosen.text, row.rejected.text,
        ...row.candidates.map((c) => c.text)].join("\n").toLowerCase();
    }
    return row.searchable;
  };

  const explorers = {};
  const setUp = (section) => {
    const { rows, columns } = data.explorers[section.dataset.explorer];
    const find = (selector) => section.querySelector(selector);
    const [search, filter, order] = ["input", ".filter", ".order"].map(find);
    const [cards, more, count] = [".cards", ".more", ".count"].map(find);
    let found = [], drawn = 0;
    const draw = () => {
      const query = search.value.trim().toLowerCase();
      cards.append(...found.slice(drawn, drawn + PAGE).map((row) => card(row, query, columns)));
      for (const text of cards.querySelectorAll(".text")) {
        if (text.scrollHeight > text.clientHeight) text.tabIndex = 0; // to scroll without a pointer
      }
      drawn = Math.min(drawn + PAGE, found.length);
      more.hidden = drawn >= found.length;
      const of = (n) => n.toLocaleString("en");
      count.textContent = `${of(found.length)} of ${of(rows.length)} pairs, ${of(drawn)} shown`;
    };
    const update = () => {
      const query = search.value.trim().toLowerCase();
      const by = Number(order.value || 0);
      const key = (row) => row.sort[by] ?? Infinity;
      found = rows
        .filter((row) => !filter.value || row.tags.includes(filter.value))
        .filter((row) => !query || searchable(row).includes(query))
        .sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
      drawn = 0;
      cards.replaceChildren();
      draw();
    };
    search.addEventListener("input", update);
    filter.addEventListener("change", update);
    order.addEventListener("change", update);
    more.addEventListener("click", () => {
      const next = cards.children.length;
      draw();
      const heading = cards.children[next].querySelector("h3");
      heading.tabIndex = -1;
      heading.focus();
    });
    explorers[section.dataset.explorer] = (query, tag = "", by = "0") => {
      search.value = query;
      filter.value = tag;
      order.value = by;
      update();
      const heading = find("h2");
      heading.scrollIntoView();
      heading.focus({ preventScroll: true });
    };
    update();
  };
  document.querySelectorAll(".explorer").forEach(setUp);

  // report.html#pairs=text&filter=tag&order=number opens the page with a search; so do its links.
  const follow = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const [name, query] of wanted) {
      const show = explorers[name];
      if (show) show(query, wanted.get("filter") ?? "", wanted.get("order") ?? "0");
    }
  };
  addEventListener("hashchange", follow);
  follow();

  // Colours by name, var(--kept), are those of the style sheet in the reader's colour scheme.
  const coloured = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, style));
    if (!value || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, style)]));
  };
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const plot = (place) => {
    const { data: traces, layout } = coloured(
      data.figures[place.dataset.figure], getComputedStyle(document.documentElement));
    return Plotly.react(place, traces, layout, config);
  };
  const places = [...document.querySelectorAll(".plot")];
  for (const place of places) {
    plot(place).then(() => {
      place.on("plotly_click", ({ points }) => {
        const id = points[0]?.customdata;
        if (typeof id === "string") explorers.pairs?.(id);
      });
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => places.forEach(plot));
})();
