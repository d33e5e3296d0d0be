// Draws a Slider (board.py) as the browser's own: it has a name, follows the keyboard, and says the chosen word.
function render({ model, el }) {
  el.classList.add("rl-slider");
  const label = document.createElement("label"), input = document.createElement("input"), word = document.createElement("output");
  input.type = "range";
  label.append(model.get("name"), input);
  el.append(label, word);

  const draw = () => {
    const options = model.get("options"), value = model.get("value");
    input.max = Math.max(0, options.length - 1);
    input.value = value;
    word.textContent = options[value] ?? "";
    input.setAttribute("aria-valuetext", word.textContent);
  };
  input.addEventListener("input", () => {
    model.set("value", Number(input.value));
    model.save_changes();
  });
  model.on("change:options", draw);
  model.on("change:value", draw);
  draw();

  // Arrow keys work what has the focus, here and in the explorer's other choices; JupyterLab would walk through its cells.
  const follow = ({ target }) => {
    if (target.matches(".rl-explorer :is(select, input)")) target.dataset.lmSuppressShortcuts = "true";
  };
  document.addEventListener("focusin", follow);
  return () => document.removeEventListener("focusin", follow);
}

export default { render };
