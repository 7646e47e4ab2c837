// A classic script in the head, run before anything is painted, so that the chosen theme never flashes.
(() => {
  try {
    const theme = localStorage.getItem("strata.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // The browser keeps no storage for this page: the system's theme it is.
  }
})();
