// Conversations as files: one as Markdown, all of a person's as JSON, and back.

import { exported, imported, markdownOf, path, titleOf } from "./conversation.js";
import { download, fill } from "./dom.js";
import { toast } from "./toast.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {typeof import("./strings.ko.js").default} Words */

/** Give the person what is shown of a conversation. */
export async function saveAsFile(
  /** @type {Store} */ store,
  /** @type {import("./conversation.js").Conversation} */ conversation,
  /** @type {Words} */ { page },
) {
  const turns = await store.turns(conversation.owner, conversation.id);
  const title = titleOf(conversation) || page.untitled;
  const name = title.replace(/[\\/:*?"<>|\p{Cc}]+/gu, " ").trim().slice(0, 60) || "eid";
  download(`${name}.md`, "text/markdown", markdownOf(title, path(turns, conversation.chosen), page));
}

/** Give the person everything of theirs. */
export async function exportAll(/** @type {Store} */ store, /** @type {string} */ owner) {
  const shelf = { conversations: await store.conversations(owner), turns: await store.turns(owner) };
  download(`eid-${new Date().toISOString().slice(0, 10)}.json`, "application/json", exported(shelf));
}

/** Take such a file in, for `owner`; what is there already stays as it is. */
export async function importFrom(
  /** @type {import("./keeper.js").Keeper} */ keeper,
  /** @type {File} */ file,
  /** @type {string} */ owner,
  /** @type {Words} */ { page },
) {
  const found = imported(await file.text(), owner);
  if (found === null) {
    toast(page.import_bad);
    return;
  }
  const n = await keeper.keep(() => keeper.store.add(found));
  if (n !== null) toast(fill(found.damaged ? page.imported_damaged : page.imported, { n, bad: found.damaged }));
}
