// Samples over training, one picture at a time. Without this script all of them stand side by side.
for (const strip of document.querySelectorAll(".over-time")) {
  const figures = [...strip.querySelectorAll(".step")];
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: figures.length - 1 });
  const show = () => figures.forEach((figure, place) => { figure.hidden = place !== Number(slider.value); });
  const tell = () => slider.setAttribute("aria-valuetext", figures[slider.value].querySelector("figcaption").textContent);
  slider.setAttribute("aria-label", "student updates");
  slider.addEventListener("input", () => { show(); tell(); });
  slider.value = figures.length - 1;
  strip.before(slider);
  show();
  tell();
}
