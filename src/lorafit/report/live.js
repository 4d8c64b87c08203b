"use strict";
// Asks the server for this page every two seconds, and puts what changed in place of what was there.
const INTERVAL = 2000;
const open = () => new Set([...document.querySelectorAll("details[open]")].map((details) => details.id));
const original = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.outerHTML]));
let tag = null;

const update = (fresh) => {
  const opened = open(), focused = document.activeElement && document.activeElement.id;
  const top = [...document.querySelectorAll("[data-live]")].find((part) => part.getBoundingClientRect().bottom > 0);
  const anchor = top && top.id, before = top && top.getBoundingClientRect().top;
  let last = null;
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const text = part.outerHTML, mine = document.getElementById(part.id);
    for (const details of part.querySelectorAll("details")) details.open = opened.has(details.id);
    if (mine && original.get(part.id) !== text) mine.replaceWith(part);
    else if (!mine) last && last.matches("main > *") ? last.after(part) : document.querySelector("main").prepend(part);
    original.set(part.id, text);
    last = document.getElementById(part.id);
  }
  document.title = fresh.title;
  const same = anchor && document.getElementById(anchor);
  if (same) scrollBy({ top: same.getBoundingClientRect().top - before });
  if (focused && document.getElementById(focused)) document.getElementById(focused).focus({ preventScroll: true });
};

const ask = async () => {
  try {
    const answer = await fetch(location.pathname, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      update(new DOMParser().parseFromString(await answer.text(), "text/html"));
    }
  } catch (error) {
    // The server is gone, perhaps for good: what is shown stays, and the next try may find it again.
  }
  setTimeout(ask, INTERVAL);
};
setTimeout(ask, INTERVAL);
