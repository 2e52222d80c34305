// Installs the service worker, where the browser has one: on https and on localhost.

const WORKER = "/chat/sw.js";

// Trusted Types count this address as script. Whatever the policy is asked for, it gives this one.
const trusted = globalThis.trustedTypes?.createPolicy("eid-worker", { createScriptURL: () => WORKER });

addEventListener("load", () => {
  navigator.serviceWorker?.register(trusted?.createScriptURL("") ?? WORKER, { scope: "/chat" }).catch(() => {
    // Private windows may refuse it. The page works without.
  });
});
