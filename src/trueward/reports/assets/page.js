"use strict";
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // Expressions are interpreted, never compiled (`ast`), and nothing may be loaded: the page works without a network.
  const options = {
    renderer: "svg",
    actions: false,
    ast: true,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true, theme: "page" },
    loader: { target: "_blank", load: () => Promise.reject(new Error("this page loads nothing")) },
  };
  const places = [...document.querySelectorAll("[data-spec]")];
  const draw = async (place) => {
    try {
      const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
      await vegaEmbed(place, spec, options);
      place.dataset.state = "drawn";
    } catch (error) {
      place.dataset.state = "failed";
      place.textContent = "This chart could not be drawn: " + error.message;
    }
  };
  Promise.all(places.map(draw)).then(() => {
    root.dataset.charts = places.every((place) => place.dataset.state === "drawn") ? "drawn" : "failed";
  });
})();
