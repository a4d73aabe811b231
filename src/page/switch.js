// Which figure colours the machine.
for (const button of document.querySelectorAll('.switch button')) {
  button.addEventListener('click', () => {
    document.getElementById('machine').dataset.show = button.dataset.show;
    for (const b of document.querySelectorAll('.switch button')) {
      b.setAttribute('aria-pressed', b === button);
    }
  });
}
