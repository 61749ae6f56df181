"use strict";
// Numbers as people read them, as `observe/wording.py` has them.
function span(seconds) {
  if (seconds > 0 && seconds < 9.95) return Number(Math.max(0.01, seconds).toPrecision(2)) + " s";
  const s = Math.round(seconds);
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min" + (s % 60 ? " " + (s % 60) + " s" : "");
  return Math.floor(s / 3600) + " h" + (Math.floor(s / 60) % 60 ? " " + (Math.floor(s / 60) % 60) + " min" : "");
}
