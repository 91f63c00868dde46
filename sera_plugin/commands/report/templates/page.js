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

  const card = (row, query) => {
    const top = element("div", "top");
    for (const tag of row.tags) top.append(element("span", "tag " + tag.split(" ")[0], tag));
    for (const [label, value] of row.numbers) {
      top.append(element("span", "", label + " ", element("b", "", shown(value))));
    }
    top.append(addText(element("code"), row.id, query));
    const side = (kind, title, value) =>
      element("div", "side " + kind, element("h4", "", title), textBox("", value, query));
    const made = element("article", "card", top, textBox("prompt", row.prompt, query),
      element("div", "sides", side("good", "chosen", row.chosen),
        side("poor", "rejected", row.rejected)));
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
    const { rows } = data.explorers[section.dataset.explorer];
    const find = (selector) => section.querySelector(selector);
    const [search, filter, order] = ["input", ".filter", ".order"].map(find);
    const [cards, more, count] = [".cards", ".more", ".count"].map(find);
    let found = [], drawn = 0;
    const draw = () => {
      const query = search.value.trim().toLowerCase();
      cards.append(...found.slice(drawn, drawn + PAGE).map((row) => card(row, query)));
      drawn = Math.min(drawn + PAGE, found.length);
      more.style.display = drawn < found.length ? "inline-block" : "none";
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
    more.addEventListener("click", draw);
    explorers[section.dataset.explorer] = (query) => {
      search.value = query;
      filter.value = "";
      update();
    };
    update();
  };
  document.querySelectorAll(".explorer").forEach(setUp);

  // report.html#pairs=text opens the page with a search.
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [name, query] of wanted) {
    if (explorers[name]) {
      explorers[name](query);
      document.getElementById("x-" + name).scrollIntoView();
    }
  }

  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  document.querySelectorAll(".plot").forEach((place) => {
    const { data: traces, layout } = data.figures[place.dataset.figure];
    Plotly.newPlot(place, traces, layout, config).then(() => {
      place.on("plotly_click", ({ points }) => {
        const id = points[0]?.customdata;
        if (typeof id !== "string" || !explorers.pairs) return;
        explorers.pairs(id);
        document.getElementById("x-pairs").scrollIntoView({ behavior: "smooth" });
      });
    });
  });
})();
