// The frame of the page: theme, the list of conversations and the settings as columns or, where the page is narrow,
// as drawers over it.

const NARROW = matchMedia("(max-width: 52rem)");
const DARK = matchMedia("(prefers-color-scheme: dark)");
const get = (id) => document.getElementById(id);

/** Opens and closes what lies beside the conversation. */
export class Shell {
  constructor({ store }) {
    this.store = store;
    this.drawer = false;
    get("toggle-sidebar").addEventListener("click", () => this.toggleSidebar());
    get("toggle-settings").addEventListener("click", () => this.toggleSettings(get("settings").hidden));
    get("close-settings").addEventListener("click", () => this.toggleSettings(false));
    get("toggle-theme").addEventListener("click", () => this.toggleTheme());
    get("veil").addEventListener("click", () => this.closeDrawers());
    NARROW.addEventListener("change", () => this.show());
    DARK.addEventListener("change", () => this.showTheme());
    // Some phones lay the keyboard over the page: only the visual viewport knows.
    visualViewport?.addEventListener("resize", () => {
      const height = Math.round(visualViewport.height * visualViewport.scale);
      document.documentElement.style.setProperty("--height", `${height}px`);
    });
    this.show();
    this.showTheme();
  }

  toggleSidebar() {
    if (NARROW.matches) this.drawer = !this.drawer;
    else {
      this.store.preferences.sidebar = !this.store.preferences.sidebar;
      this.store.savePreferences();
    }
    this.show();
    if (this.drawer) get("new").focus();
  }

  toggleSettings(open) {
    get("settings").hidden = !open;
    this.drawer = false;
    this.show();
    if (open) get("close-settings").focus();
    else get("toggle-settings").focus();
  }

  /** Closes the drawers of a narrow page. */
  closeDrawers() {
    if (!NARROW.matches) return;
    this.drawer = false;
    get("settings").hidden = true;
    this.show();
  }

  /** Closes what Esc should close first; says whether there was anything. */
  closeTopmost() {
    if (!get("settings").hidden && (NARROW.matches || get("settings").contains(document.activeElement))) {
      this.toggleSettings(false);
      return true;
    }
    if (!NARROW.matches || !this.drawer) return false;
    this.closeDrawers();
    get("toggle-sidebar").focus();
    return true;
  }

  show() {
    if (!NARROW.matches) this.drawer = false;
    const sidebar = NARROW.matches ? this.drawer : this.store.preferences.sidebar;
    const settings = !get("settings").hidden;
    document.body.classList.toggle("with-sidebar", sidebar);
    const covered = NARROW.matches && (sidebar || settings);
    document.body.classList.toggle("with-drawer", covered);
    // What is out of sight is out of the way of the keyboard too.
    get("sidebar").inert = !sidebar;
    for (const place of document.querySelectorAll(".bar, .chat")) place.inert = covered;
    get("toggle-sidebar").setAttribute("aria-expanded", String(sidebar));
    get("toggle-settings").setAttribute("aria-expanded", String(settings));
  }

  isDark() {
    const { theme } = document.documentElement.dataset;
    return theme ? theme === "dark" : DARK.matches;
  }

  toggleTheme() {
    const theme = this.isDark() ? "light" : "dark";
    // Back at what the system says, follow the system again.
    const follows = (theme === "dark") === DARK.matches;
    if (follows) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      if (follows) localStorage.removeItem("strata.theme");
      else localStorage.setItem("strata.theme", theme);
    } catch {
      // It lasts as long as the page, then.
    }
    this.showTheme();
  }

  showTheme() {
    const label = this.isDark() ? "Light theme" : "Dark theme";
    const button = get("toggle-theme");
    button.setAttribute("aria-label", label);
    button.title = label;
    button.querySelector("use").setAttribute("href", this.isDark() ? "#icon-sun" : "#icon-moon");
  }
}
