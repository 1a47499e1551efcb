// A Proxy-Wasm filter in AssemblyScript without any SDK: what tests/languages.rs asks of a guest in every language.
// It answers 403 on /closed, logs every path, and says on each answer who it is and over which protocol.

const ME = "assemblyscript";
const INFO: u32 = 2;
const RESPONSE_HEADERS: u32 = 2;

@external("env", "proxy_log")
declare function proxy_log(level: u32, message: usize, len: u32): u32;
@external("env", "proxy_get_property")
declare function proxy_get_property(path: usize, pathLen: u32, value: usize, len: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function proxy_replace_header_map_value(map: u32, key: usize, keyLen: u32, value: usize, len: u32): u32;
@external("env", "proxy_send_local_response")
declare function proxy_send_local_response(status: u32, details: usize, detailsLen: u32, body: usize, len: u32, headers: usize, headersLen: u32, grpcStatus: i32): u32;
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(code: u32): void;

// In place of the compiler's `env.abort`, which no Proxy-Wasm host has.
function abortByExit(_message: string | null, _file: string | null, _line: u32, _column: u32): void {
  proc_exit(255);
  unreachable();
}

export function proxy_abi_version_0_2_0(): void {}

export function proxy_on_memory_allocate(len: u32): usize {
  return heap.alloc(len);
}

function property(path: string): string {
  const bytes = String.UTF8.encode(path);
  const place = memory.data(8);
  if (proxy_get_property(changetype<usize>(bytes), bytes.byteLength, place, place + 4) != 0) return "";
  const value = load<usize>(place);
  if (value == 0) return "";
  const text = String.UTF8.decodeUnsafe(value, load<u32>(place + 4));
  heap.free(value);
  return text;
}

export function proxy_on_request_headers(_context: u32, _count: u32, _endOfStream: u32): u32 {
  const path = property("request\0path");
  const line = String.UTF8.encode(`${ME} sees ${path}`);
  proxy_log(INFO, changetype<usize>(line), line.byteLength);
  if (path != "/closed") return 0;
  const body = String.UTF8.encode("closed by " + ME);
  proxy_send_local_response(403, 0, 0, changetype<usize>(body), body.byteLength, 0, 0, -1);
  return 1;
}

export function proxy_on_response_headers(_context: u32, _count: u32, _endOfStream: u32): u32 {
  const key = String.UTF8.encode("x-guest");
  const value = String.UTF8.encode(ME + " over " + property("request\0protocol"));
  proxy_replace_header_map_value(RESPONSE_HEADERS, changetype<usize>(key), key.byteLength, changetype<usize>(value), value.byteLength);
  return 0;
}
