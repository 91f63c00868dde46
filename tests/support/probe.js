// Runs within a page, in a frame, and tells the outer page what a reader would see.
addEventListener("load", () => setTimeout(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const box = (element) => element.getBoundingClientRect();
  const meet = (a, b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const plots = all(".plot").map((plot) => {
    const bar = plot.querySelector(".modebar-group")?.parentElement;
    const legend = plot.querySelector(".legend");
    return { name: plot.id, both: !!bar && !!legend,
      covered: !!bar && !!legend && meet(box(bar), box(legend)) };
  });

  const numbers = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = numbers(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const light = (colour) => colour
    .map((v) => (v <= 10.3 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (element) => {
    const a = light(numbers(getComputedStyle(element).color).slice(0, 3)), b = light(ground(element));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const read = all("body *").filter((element) => !element.closest("svg, script, option")
    && [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));

  parent.postMessage(JSON.stringify({
    width: innerWidth,
    needed: document.documentElement.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    texts: read.length,
    faint: read.filter((e) => contrast(e) < 4.5).map((e) => `${e.tagName}.${e.className}`),
    plots,
    bars: [...new Set(all(".plot .point path").map((path) => path.style.fill))],
    focus: document.activeElement.textContent,
    count: document.querySelector("#x-pairs .count").textContent,
    shown: all("#x-pairs .card").length,
  }), "*");
}, 3000));
