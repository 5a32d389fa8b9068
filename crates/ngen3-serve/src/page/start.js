// Opens the page.

for (const id of ['model', 'compare']) {
  $(id).onchange = () => { settings[id] = $(id).value; store.write('settings', settings); stop(); showTalk(); };
}
loadModels().then(() => {
  if (!models.length) $('tab-talk').hidden = true;
  else showTalk();
  show(!models.length || location.hash === '#runs' ? $('tab-runs') : $('tab-talk'));
  if (!$('open-list').hidden && models.length && !isChat()) $('open-list').hidden = true;
}).catch((error) => {
  $('turns').replaceChildren(make('div', { class: 'empty' }, make('h2', {}, 'The server does not answer'), make('p', { class: 'error' }, error.message)));
});
