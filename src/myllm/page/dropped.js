// Reads what was dropped or pasted: files, and the pictures of folders.

// transfer: the DataTransfer of the event. Resolves to at least one file.
export async function readFiles({ items }) {
  // all are begun now, because the browser empties `items` after the event
  const parts = [...items].filter(({ kind }) => kind === 'file').map(readItem);
  if (!parts.length) throw new Error('That was not a picture file. Save the picture first, then drop or choose the file.');
  const files = (await Promise.all(parts)).flat();
  if (!files.length) throw new Error('That folder has no pictures. Folders in it are not searched.');
  return files;
}

function readItem(item) {
  const entry = item.webkitGetAsEntry();
  return entry?.isDirectory ? readFolder(entry) : item.getAsFile();
}

// Resolves to the pictures of a folder, sorted by name.
async function readFolder(folder) {
  const files = [];
  try {
    const reader = folder.createReader();
    for (;;) {
      const entries = await promise(reader, 'readEntries'); // 100 at most
      if (!entries.length) break;
      const children = entries.filter(({ isFile }) => isFile);
      files.push(...await Promise.all(children.map(child => promise(child, 'file'))));
    }
  } catch {
    throw new Error(`The folder ${folder.name} cannot be read.`);
  }
  const pictures = files.filter(({ type }) => type.startsWith('image/'));
  return pictures.sort((first, second) => first.name.localeCompare(second.name, undefined, { numeric: true }));
}

// Calls a method that takes the callbacks of a success and of an error.
function promise(object, method) {
  return new Promise((resolve, reject) => object[method](resolve, reject));
}
