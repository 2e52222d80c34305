// The service worker: keeps the page's own files, so that conversations can be read without a network.
//
// It answers for the page and its files and for nothing else: what is asked and answered (/api), the settings and the
// queue (/chat/config, /chat/state) never pass through it. Each version keeps one whole set of files, taken when it is
// installed; the next version takes over once no tab of this one is open.

const DIGEST = "digest"; // the server writes the digest of the files here
const FILES = ["files"]; // and here the paths to keep
const PREFIX = "eid-page-";
const KEPT = PREFIX + DIGEST;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(FILES)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(caches.keys().then((names) =>
    Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== KEPT).map((name) => caches.delete(name)))));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== location.origin || !FILES.includes(pathname)) return;
  event.respondWith(pathname === "/chat" ? page(request) : file(request));
});

/** The page as the server has it now; what is kept when the server cannot be reached, or the edge cannot reach it. */
async function page(request) {
  let answer = null;
  try {
    answer = await fetch(request);
    if (answer.status < 500) return answer;
  } catch {
    // No network.
  }
  return await kept("/chat") ?? answer ?? Response.error();
}

async function file(request) {
  return await kept(new URL(request.url).pathname) ?? fetch(request);
}

async function kept(path) {
  return (await caches.open(KEPT)).match(path);
}
