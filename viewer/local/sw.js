// Keeps every file of the page when it is first fetched, so that the page opens again without a network, and adds the
// headers under which browsers allow threads (docs/viewer.md), whatever the host sends. Other files are left alone.

const MINE = `liif ${registration.scope} `, NAME = MINE + "VERSION";  // the export fills in the words in quotes
const FIRST = "FIRST", LATER = "LATER";  // names of all files of the page; the first are fetched at once
const OWN = new Set([...FIRST, ...LATER].map(name => new URL(name, registration.scope).href));
const HEADERS = {'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp',
  'Content-Security-Policy': "POLICY"};

addEventListener('install', event => event.waitUntil((async () => {
  const cache = await caches.open(NAME);
  await cache.addAll(FIRST.map(file => new Request(file, {cache: 'no-cache'})));
  await skipWaiting();
})()));
addEventListener('activate', event => event.waitUntil((async () => {
  const old = (await caches.keys()).filter(name => name.startsWith(MINE) && name !== NAME);
  await Promise.all(old.map(name => caches.delete(name)));
  await clients.claim();
})()));
addEventListener('fetch', event => {
  const {origin, pathname} = new URL(event.request.url);
  if (event.request.method === 'GET' && OWN.has(origin + pathname)) event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(NAME);
  let found = await cache.match(request, {ignoreSearch: true});
  if (!found) {
    found = await fetch(request);
    if (!found.status) return found;  // a redirect, which the browser follows
    if (found.status === 200) await cache.put(request, found.clone());
  }
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(found.body, {status: found.status, statusText: found.statusText, headers});
}
