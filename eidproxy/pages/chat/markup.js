// Text → elements: paragraphs, headings, lists, code. Elements and text nodes only, so nothing in a text becomes markup
// of the page; links stay text, since the page leads nowhere else.

const FENCE = /^ {0,3}(```+|~~~+)[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^#{1,6}[ \t]+(.+?)[ \t]*#*$/;
const ITEM = /^([ \t]*)(?:[-*•]|(\d{1,9})[.)])[ \t]+(.*)$/;

/** The blocks of a text: `{kind: "p" | "h" | "code" | "ul" | "ol", …}`. An open fence runs to the end of the text. */
export function blocks(text) {
  const found = [];
  let open = null;
  let fence = null;
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    if (fence !== null) {
      if (line.trim().startsWith(fence) && line.trim().replaceAll(fence[0], "") === "") fence = null;
      else open.lines.push(line);
      continue;
    }
    const fenced = FENCE.exec(line);
    if (fenced) {
      fence = fenced[1];
      open = { kind: "code", lines: [] };
      found.push(open);
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      found.push({ kind: "h", lines: [heading[1]] });
      open = null;
      continue;
    }
    const item = ITEM.exec(line);
    if (item) {
      const kind = item[2] === undefined ? "ul" : "ol";
      const depth = Math.min(Math.floor(item[1].replaceAll("\t", "    ").length / 2), 3);
      if (open?.kind !== kind || open.depth !== depth) {
        open = { kind, depth, start: Number(item[2] ?? 1), lines: [] };
        found.push(open);
      }
      open.lines.push(item[3]);
      continue;
    }
    if (line.trim() === "") {
      // A blank line between two items of a list does not end the list; between paragraphs it does.
      if (open?.kind === "p" || open?.kind === "code") open = null;
      continue;
    }
    if ((open?.kind === "ul" || open?.kind === "ol") && /^[ \t]/.test(line)) {
      open.lines[open.lines.length - 1] += `\n${line.trim()}`;
      continue;
    }
    if (open?.kind !== "p") {
      open = { kind: "p", lines: [] };
      found.push(open);
    }
    open.lines.push(line);
  }
  return found;
}

/** Show `text` in `target`. Blocks that are the same as before keep their elements, so a selection in them survives. */
export function show(target, text) {
  const wanted = blocks(text);
  const have = Array.from(target.children);
  wanted.forEach((block, index) => {
    const key = JSON.stringify(block);
    if (have[index]?.blockKey === key) return;
    const element = build(block);
    element.blockKey = key;
    if (have[index]) have[index].replaceWith(element);
    else target.append(element);
  });
  for (const extra of have.slice(wanted.length)) extra.remove();
}

function build({ kind, lines, depth, start }) {
  if (kind === "code") {
    const pre = document.createElement("pre");
    // A wide block scrolls sideways; with a tab stop a keyboard can scroll it too.
    pre.tabIndex = 0;
    const code = document.createElement("code");
    code.textContent = lines.join("\n");
    pre.append(code);
    return pre;
  }
  if (kind === "ul" || kind === "ol") {
    const list = document.createElement(kind);
    if (kind === "ol" && start !== 1) list.start = start;
    if (depth) list.classList.add(`depth-${depth}`);
    for (const line of lines) {
      const item = document.createElement("li");
      inline(item, line);
      list.append(item);
    }
    return list;
  }
  const element = document.createElement(kind === "h" ? "h3" : "p");
  inline(element, lines.join("\n"));
  return element;
}

function inline(target, text) {
  for (const piece of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (piece.length > 2 && piece.startsWith("`") && piece.endsWith("`")) {
      const code = document.createElement("code");
      code.textContent = piece.slice(1, -1);
      target.append(code);
    } else if (piece.length > 4 && piece.startsWith("**") && piece.endsWith("**")) {
      const strong = document.createElement("strong");
      strong.textContent = piece.slice(2, -2);
      target.append(strong);
    } else if (piece) {
      target.append(piece);
    }
  }
}
