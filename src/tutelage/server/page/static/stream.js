// Server-sent events that survive what happens to pages: hidden tabs, restarts of the server.
"use strict";

const AGAIN_AFTER = 4000;

/**
 * Listen from a place on; `onItem` gets the data of each event, `onEnd` is told when there will be no more.
 *
 * A browser has six connections to a server for all its tabs: who is not looked at gives theirs back, and goes on where
 * it was when it is looked at again.
 *
 * @param {{url: (place: string) => string, place: string, name: string, onItem: (data: unknown) => void,
 *   onEnd?: () => void}} options
 */
export function follow({ url, place, name, onItem, onEnd }) {
  let source = null;
  let ended = false;
  let timer = 0;

  function open() {
    clearTimeout(timer);
    if (source || ended || document.hidden) return;
    source = new EventSource(url(place));
    source.addEventListener(name, (event) => {
      place = event.lastEventId || place;
      onItem(JSON.parse(event.data));
    });
    source.addEventListener("end", () => {
      ended = true;
      close();
      onEnd?.();
    });
    source.onerror = () => {
      // While it connects again by itself there is nothing to do.
      if (source?.readyState !== EventSource.CLOSED) return;
      close();
      timer = setTimeout(open, AGAIN_AFTER);
    };
  }

  function close() {
    source?.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  // Kept pages of the history may not keep connections.
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  open();
}
