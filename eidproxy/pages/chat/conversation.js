// The conversation as values: what is counted, what is sent, how a continued answer is joined. Nothing here touches
// the document, the network or the storage.

// The caps of the server, in Unicode code points as it counts them.
export const MAX_MESSAGE = 8000;
export const MAX_MESSAGES = 40;
export const MAX_TOTAL = 32000;

/** The length of `text` in Unicode code points (`length` counts UTF-16 units, so an emoji twice). */
export function codePoints(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

/** What is left of a text when it is sent: no blanks at its ends, no half of a surrogate pair (JSON has none). */
export function cleaned(text) {
  const trimmed = text.trim();
  return trimmed.toWellFormed ? trimmed.toWellFormed() : trimmed;
}

/** The last `limit` code points. The end of a long answer is what the next turn builds on. */
function tail(text, limit) {
  if (text.length <= limit) return text;
  const points = Array.from(text);
  return points.length <= limit ? text : `…${points.slice(points.length - limit + 1).join("")}`;
}

/**
 * The messages of one request: the newest earlier exchanges that fit under the caps, then the question of `current`;
 * for a continuation also the part of the answer that is there and `request`, which asks for the rest.
 *
 * An exchange without an answer is left out, so the roles alternate; one that the server refused is left out for good.
 */
export function outgoing(earlier, current, request = null) {
  const messages = [{ role: "user", content: current.question }];
  if (request !== null) {
    messages.push({ role: "assistant", content: tail(current.answer, MAX_MESSAGE) });
    messages.push({ role: "user", content: request });
  }
  let total = messages.reduce((sum, message) => sum + codePoints(message.content), 0);
  for (let index = earlier.length - 1; index >= 0; index -= 1) {
    const { question, answer, refused } = earlier[index];
    if (refused || !answer.trim()) continue;
    const reply = tail(answer, MAX_MESSAGE);
    total += codePoints(question) + codePoints(reply);
    // The first that does not fit ends the list: a conversation with a hole in it would mislead.
    if (messages.length + 2 > MAX_MESSAGES || total > MAX_TOTAL) break;
    messages.unshift({ role: "user", content: question }, { role: "assistant", content: reply });
  }
  return messages;
}

const SHORTEST_OVERLAP = 10;
const LONGEST_OVERLAP = 240;

/** A cut answer and its continuation as one text. Some continuations begin by repeating the last words; once is enough. */
export function joined(part, more) {
  for (let size = Math.min(part.length, more.length, LONGEST_OVERLAP); size >= SHORTEST_OVERLAP; size -= 1) {
    if (part.endsWith(more.slice(0, size))) return part + more.slice(size);
  }
  return part + more;
}
