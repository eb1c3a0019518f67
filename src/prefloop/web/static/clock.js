// Seconds that a task was looked at: time in a hidden tab does not count.

export class Clock {
  #before = 0;
  #since = null;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.#go()));
  }

  start(seconds) {
    this.#before = seconds;
    this.#since = null;
    if (!document.hidden) this.#go();
  }

  get seconds() {
    return this.#before + (this.#since === null ? 0 : (performance.now() - this.#since) / 1000);
  }

  #go() {
    this.#since = performance.now();
  }

  #stop() {
    this.#before = this.seconds;
    this.#since = null;
  }
}
