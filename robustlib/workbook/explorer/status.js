// Draws a Status (board.py). The sentence's element stays and only its text changes: that is what makes it a live region.
function render({ model, el }) {
  el.classList.add("rl-status");
  const said = document.createElement("div"), busy = document.createElement("div"), doing = document.createElement("span");
  const bar = document.createElement("progress");
  said.setAttribute("role", "status");
  bar.setAttribute("aria-label", "Progress of the computation");
  busy.className = "rl-busy";
  busy.append(bar, doing);
  el.append(said, busy);

  const draw = () => {
    if (said.textContent !== model.get("said")) said.textContent = model.get("said"); // else it would be read again
    busy.hidden = !model.get("doing");
    doing.textContent = model.get("doing");
    bar.value = model.get("share");
  };
  for (const name of ["said", "doing", "share"]) model.on(`change:${name}`, draw);
  draw();
}

export default { render };
