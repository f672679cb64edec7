// Loaded into the gateway before itself. The gateway would listen on every interface and outlive those who started it:
// it is kept on loopback, says which port it got, and ends when its standard input does.
"use strict";

const { Server } = require("node:net");

const { listen } = Server.prototype;

Server.prototype.listen = function (port, _host, ready) {
  this.once("listening", () => console.log(`Listening on port ${this.address().port}`));
  return listen.call(this, port, "127.0.0.1", ready);
};

process.stdin.on("close", () => process.exit());
process.stdin.resume();
