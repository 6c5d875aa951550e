// Keys of the review tab: a letter presses the button that names it, unless something is being typed.
document.addEventListener("keydown", (event) => {
  const buttons = {
    c: "mark-confirmed", f: "mark-false_alarm", u: "mark-unsure",
    n: "next", p: "previous",
  };
  const id = buttons[event.key?.toLowerCase()]; // with Caps Lock on, too
  if (!id || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  const button = document.getElementById(id);
  if (button && button.offsetParent && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});
