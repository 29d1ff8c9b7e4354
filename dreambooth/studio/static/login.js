// The token becomes the cookie of a session, and the page that was asked for is opened.
"use strict";

document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token").value.trim();
  const reply = await fetch("/api/v1/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (reply.ok) {
    location.replace("/");
    return;
  }
  const wrong = document.getElementById("wrong");
  wrong.textContent = (await reply.json().catch(() => ({}))).detail || "That did not work.";
  wrong.hidden = false;
});
