"use strict";
(function () {
  const root = document.documentElement;
  root.classList.add("js");
  const byId = (id) => document.getElementById(id);
  const dataOf = (id) => { const found = byId(id); return found ? JSON.parse(found.textContent) : null; };

  function element(name, properties, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "text") made.textContent = value;
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // As drawing.html.number, so that a figure reads the same wherever it stands.
  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size >= 1000 || (Number.isInteger(value) && size >= 1)) return Math.round(value).toLocaleString("en-US");
    if (value === 0) return "0";
    return size >= 1e-3 ? value.toPrecision(3).replace(/\.$/, "") : String(Number(value.toPrecision(3)));
  }
  const count = (amount, word) => amount.toLocaleString("en-US") + " " + word + (amount === 1 ? "" : "s");
  function percent(share) {
    if ((share > 0 && share < 0.01) || (share > 0.99 && share < 1)) {
      return share >= 0.001 && share <= 0.999 ? (100 * share).toFixed(1) + "\u00a0%" : share < 0.5 ? "< 0.1\u00a0%" : "> 99.9\u00a0%";
    }
    return (100 * share).toFixed(0) + "\u00a0%";
  }

  // ---- the note under the pointer
  const tip = element("div", { id: "tip", hidden: true, role: "status" });
  document.body.append(tip);
  function showTip(x, y, ...children) {
    tip.replaceChildren(...children);
    tip.hidden = false;
    const wide = tip.offsetWidth, room = root.clientWidth;
    const left = x + 14 + wide > room - 6 ? Math.max(6, x - 14 - wide) : x + 14;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = Math.max(4, y - tip.offsetHeight - 10) + window.scrollY + "px";
  }
  const hideTip = () => { tip.hidden = true; };

  // ---- curves: the values of the epoch under the pointer
  function spot(line, x) {
    let best = -1, distance = Infinity;
    line.x.forEach((value, place) => { const far = Math.abs(value - x); if (far < distance) { distance = far; best = place; } });
    return best;
  }
  function readable(chart) {
    const svg = chart.querySelector("svg[role]"), told = dataOf(chart.id + "-data");
    if (!svg || !told) return;
    const [first, last, left, right] = told.scale, cursor = svg.querySelector(".cursor");
    const move = (event) => {
      const box = svg.getBoundingClientRect(), wide = svg.viewBox.baseVal.width;
      const x = first + (((event.clientX - box.left) / box.width) * wide - left) / (right - left) * (last - first);
      const nearest = told.lines.map((line) => line.x[spot(line, x)]).reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
      const rows = told.lines.filter((line) => line.x[spot(line, nearest)] === nearest).map((line) => {
        const place = spot(line, nearest), band = line.band ? " (" + number(line.band[place][0]) + " … " + number(line.band[place][1]) + ")" : "";
        return element("div", { class: "row" }, element("i", { style: "background:var(--s" + line.colour + ")" }), element("span", { text: line.name }),
          element("span", { text: number(line.y[place]) + band }));
      });
      const at = left + ((nearest - first) / (last - first)) * (right - left);
      cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.classList.add("on");
      showTip(box.left + (at / wide) * box.width, Math.max(event.clientY, box.top + 30), element("b", { text: "epoch " + nearest }), ...rows);
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => { cursor.classList.remove("on"); hideTip(); });
  }
  document.querySelectorAll("figure.chart").forEach(readable);

  // ---- pictures of the sheet
  let sheet = null, slots = new Map(), names = {};
  const nameOf = (image) => names[image] || "image " + image;
  function take(told) {
    sheet = told;
    slots = new Map(told ? told.images.map((image, slot) => [image, slot]) : []);
  }
  function picture(image) {
    const slot = slots.get(image);
    if (slot === undefined) return element("i", { class: "im none", title: nameOf(image), "data-image": image });
    const x = slot % sheet.columns, y = Math.floor(slot / sheet.columns);
    const share = (place, amount) => (100 * (place * sheet.cell + 1)) / (amount * sheet.cell - sheet.side);
    return element("i", { class: "im", title: nameOf(image), "data-image": image, style: "background-position:" + share(x, sheet.columns).toFixed(3) + "% " + share(y, sheet.rows).toFixed(3) + "%" });
  }

  // ---- the explorer
  const told = dataOf("explorer-data");
  if (told) {
    take(told.sheet);
    names = told.names || {};
    const panel = byId("explorer-panel"), crumbs = byId("explorer-crumbs"), cards = byId("explorer-cards");
    const levels = told.levels.map((level) => new Map(level.prototypes.map((one) => [one.id, one])));
    let path = []; // numbers of the prototypes opened, one a level

    const summary = (one) => [count(one.size, "image"), "φ " + number(one.phi)].join(" · ");
    function card(level, one) {
      return element("button", { type: "button", class: "card", "data-level": level, "data-prototype": one.id, "aria-expanded": "false", "aria-controls": "explorer-panel" },
        element("span", { class: "card-head" }, element("b", { text: one.id }), one.role ? element("em", { class: "role", text: one.role }) : null,
          one.top !== null ? element("span", { class: "top", text: "“" + one.top + "” " + percent(one.share) }) : null),
        sheet ? element("span", { class: "strip" }, ...one.near.slice(0, told.strip).map(picture)) : null,
        element("span", { class: "summary-line", text: summary(one) + " · " + percent(one.parentShare) + " inside" }));
    }
    function inner(level, one) {
      const finer = told.levels[level + 1];
      if (!finer) return [];
      const shown = one.children.map((id) => levels[level + 1].get(id));
      const said = one.inside === 0 ? "No prototype of K = " + finer.k.toLocaleString("en-US") + " has most of its images here."
        : count(one.inside, "prototype") + " of K = " + finer.k.toLocaleString("en-US") + (one.inside === 1 ? " has" : " have") + " most of their images here"
          + (shown.length < one.inside ? (shown.length ? ", " + shown.length + " of them with pictures." : ", none of them with pictures.") : ".");
      return [element("h4", { text: "Inside it" }), element("p", { class: "summary-line inside", text: said.replace("has most of their", "has most of its") }),
        element("ul", { class: "cards" }, ...shown.map((child) => element("li", {}, card(level + 1, child))))];
    }
    function group(title, images) {
      return element("div", {}, element("h4", { text: title }), element("div", { class: "big" }, ...images.map(picture)));
    }
    // All images of a prototype: pictures of those that have one, the names of the others.
    function everyone(one) {
      const members = one.members || [], shown = sheet ? members.filter((image) => slots.has(image)) : [];
      const known = new Set([...one.near, ...one.far]);
      if (!members.some((image) => !known.has(image)) && !(sheet === null && members.length)) return [];
      const rest = members.filter((image) => !slots.has(image)), first = 200;
      const list = (images) => element("ul", { class: "names" }, ...images.map((image) => element("li", { text: nameOf(image) })));
      return [element("div", { class: "members" }, element("h4", { text: "All of its images, the nearest first" }),
        shown.length ? element("div", { class: "big" }, ...shown.map(picture)) : null,
        rest.length ? list(rest.slice(0, first)) : null,
        rest.length > first ? element("p", { class: "summary-line", text: "… and " + count(rest.length - first, "further image") + ", which prototypes.csv in the run's folder lists" }) : null)];
    }
    // A picture under the pointer is shown large, with its file's name.
    function large(event) {
      const found = event.target.closest ? event.target.closest(".im[data-image], .card .im") : null;
      if (!found || found.classList.contains("none")) { hideTip(); return; }
      const copy = found.cloneNode(false);
      copy.removeAttribute("title");
      showTip(event.clientX, event.clientY, element("span", { class: "sheet zoom" }, copy), element("div", { class: "name", text: found.dataset.name || found.getAttribute("title") || found.dataset.title }));
    }
    byId("explorer").addEventListener("pointerover", large);
    byId("explorer").addEventListener("pointerleave", hideTip);
    function draw(focus) {
      document.querySelectorAll("#explorer .card").forEach((found) => {
        found.setAttribute("aria-expanded", String(Number(found.dataset.level) < path.length && path[found.dataset.level] === Number(found.dataset.prototype)));
      });
      panel.hidden = crumbs.hidden = path.length === 0;
      if (!path.length) { panel.replaceChildren(); crumbs.replaceChildren(); return; }
      const level = path.length - 1, one = levels[level].get(path[level]);
      const top = one.top !== null ? percent(one.share) + " of its labelled images are “" + one.top + "”" : null;
      const text = [count(one.size, "image"), percent(one.size / Math.max(1, told.images)) + " of all", "φ " + number(one.phi), one.role, top,
        level > 0 ? percent(one.parentShare) + " of it lies in prototype " + one.parent + " above" : null].filter(Boolean).join(" · ");
      panel.replaceChildren(
        element("h3", { text: "Prototype " + one.id + " of K = " + told.levels[level].k.toLocaleString("en-US") }),
        element("p", { class: "summary-line", text: text }),
        sheet ? element("div", { class: "pictures" }, group("Nearest to it", one.near), one.far.length ? group("At its edge", one.far) : null)
          : element("p", { class: "summary-line", text: "There are no pictures of its images." }),
        ...everyone(one),
        ...inner(level, one));
      const steps = [{ text: "All of K = " + told.levels[0].k.toLocaleString("en-US"), depth: 0 }, ...path.map((id, place) => ({ text: "K = " + told.levels[place].k.toLocaleString("en-US") + " #" + id, depth: place + 1 }))];
      crumbs.replaceChildren(...steps.flatMap((step, place) => [
        place ? element("span", { class: "arrow", "aria-hidden": "true", text: "›" }) : null,
        element("button", { type: "button", class: "crumb", "data-depth": step.depth, "aria-current": step.depth === path.length ? "true" : null, text: step.text }),
      ]).filter(Boolean));
      if (focus) { panel.focus({ preventScroll: true }); crumbs.scrollIntoView({ block: "start" }); }
    }
    byId("explorer").addEventListener("click", (event) => {
      const chosen = event.target.closest("button");
      if (!chosen) return;
      if (chosen.dataset.prototype !== undefined) {
        path = [...path.slice(0, Number(chosen.dataset.level)), Number(chosen.dataset.prototype)];
        draw(true);
      } else if (chosen.dataset.depth !== undefined) {
        const before = path;
        path = path.slice(0, Number(chosen.dataset.depth));
        draw(path.length > 0);
        if (!path.length) { const opened = cards.querySelector('[data-prototype="' + before[0] + '"]'); if (opened) opened.focus(); }
      } else if (chosen.dataset.sort) {
        const key = chosen.dataset.sort;
        const worth = (item) => { const of = item.firstElementChild.dataset; return key === "phi" ? Number(of.phi) : key === "size" ? -Number(of.size) : Number(of.prototype); };
        const items = [...cards.children].sort((a, b) => worth(a) - worth(b));
        const first = [...cards.children].filter((item) => !item.classList.contains("later")).length;
        items.forEach((item, place) => item.classList.toggle("later", place >= first));
        cards.replaceChildren(...items);
        chosen.parentElement.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one === chosen)));
      } else if (chosen.id === "explorer-more") {
        cards.classList.add("all");
        chosen.hidden = true;
      }
    });
  }

  // ---- the map
  const map = byId("feature-map"), points = dataOf("map-data");
  if (map && points) {
    const views = [...map.querySelectorAll(".map-view")];
    const choose = (way) => {
      views.forEach((view) => view.classList.toggle("on", Number(view.dataset.way) === way));
      map.querySelectorAll(".toggle button").forEach((one) => one.setAttribute("aria-pressed", String(Number(one.dataset.way) === way)));
    };
    choose(0);
    map.querySelectorAll(".toggle button").forEach((one) => one.addEventListener("click", () => choose(Number(one.dataset.way))));
    views.forEach((view) => {
      const svg = view.querySelector("svg[role]"), here = view.querySelector(".here");
      const leave = () => { here.classList.remove("on"); hideTip(); };
      const move = (event) => {
        const box = svg.getBoundingClientRect(), scale = points.width / box.width;
        const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
        let best = -1, distance = (16 * scale) ** 2;
        points.points.forEach(([px, py], place) => { const far = (px - x) ** 2 + (py - y) ** 2; if (far < distance) { distance = far; best = place; } });
        if (best < 0) return leave();
        here.setAttribute("cx", points.points[best][0]); here.setAttribute("cy", points.points[best][1]); here.classList.add("on");
        const image = points.images[best], said = points.ways.map((way) => element("div", { text: [way.title, way.said[best]].filter(Boolean).join(": ") }));
        const shown = slots.has(image) ? element("span", { class: "sheet" }, picture(image)) : null;
        showTip(event.clientX, event.clientY, ...[shown, element("div", {}, element("b", { text: nameOf(image) })), ...said].filter(Boolean));
      };
      svg.addEventListener("pointermove", move);
      svg.addEventListener("pointerdown", move);
      svg.addEventListener("pointerleave", leave);
    });
  }

  // ---- on paper everything is open
  const open = () => document.querySelectorAll("details").forEach((one) => { if (!one.open) { one.open = true; one.dataset.forPrint = "yes"; } });
  const close = () => document.querySelectorAll("details[data-for-print]").forEach((one) => { one.open = false; delete one.dataset.forPrint; });
  window.addEventListener("beforeprint", open);
  window.addEventListener("afterprint", close);
  window.matchMedia("print").addEventListener("change", (event) => (event.matches ? open() : close()));
})();
