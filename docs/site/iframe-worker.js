// A page opened from the disk may start no worker in Chromium. The search then runs in a hidden frame of the page.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.loaded = new Promise((resolve) => {
        const script = inner.document.createElement("script");
        script.src = url;
        script.onload = resolve;
        inner.document.head.append(script);
      });
      this.send = (data) => inner.dispatchEvent(new inner.MessageEvent("message", { data }));
    }
    postMessage(data) {
      this.loaded.then(() => this.send(data));
    }
  };
}
