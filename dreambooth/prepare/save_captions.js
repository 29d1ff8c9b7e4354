// Offers the captions of the page's fields as metadata.jsonl, as training and `prepare --captions` read it.
const button = document.querySelector("#save");
button.addEventListener("click", () => {
  const fields = [...document.querySelectorAll("textarea")].filter(field => field.value.trim());
  const lines = fields.map(field => JSON.stringify({ file_name: field.name, text: field.value.trim() }) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = "metadata.jsonl";
  link.click();
});
button.disabled = false;
