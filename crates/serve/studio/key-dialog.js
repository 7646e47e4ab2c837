// Asks for the server's API key.

/** The dialog; `ask()` resolves to whether a key was given. */
export class KeyDialog {
  constructor({ store }) {
    this.store = store;
    this.dialog = document.getElementById("key-dialog");
    this.field = document.getElementById("key");
    this.remember = document.getElementById("remember-key");
    document.getElementById("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const key = this.field.value.trim();
      if (!key) return;
      // Anything else cannot be sent in a header.
      if (/[^\x21-\x7e]/.test(key))
        return this.complain("A key has only plain letters, digits and signs, without spaces.");
      store.setKey(key, this.remember.checked);
      this.close(true);
    });
    document.getElementById("cancel-key").addEventListener("click", () => this.close(false));
    this.dialog.addEventListener("cancel", () => this.close(false));
  }

  ask() {
    if (this.asking) return this.asking;
    this.complain(this.store.key ? "The server did not accept the key it was given." : "");
    this.field.value = "";
    this.asking = new Promise((resolve) => {
      this.resolve = resolve;
    });
    this.dialog.showModal();
    this.field.focus();
    return this.asking;
  }

  complain(text) {
    const error = document.getElementById("key-error");
    error.hidden = !text;
    error.textContent = text;
  }

  close(given) {
    this.dialog.close();
    this.asking = null;
    this.resolve?.(given);
  }
}
