//! A Proxy-Wasm filter in Zig without any SDK: what tests/languages.rs asks of a guest in every language.
//! It answers 403 on /closed, logs every path, and says on each answer who it is and over which protocol.
const std = @import("std");

const allocator = std.heap.wasm_allocator;
const me = "zig";
const info = 2;
const response_headers = 2;

extern "env" fn proxy_log(level: u32, message: [*]const u8, len: usize) u32;
extern "env" fn proxy_get_property(path: [*]const u8, path_len: usize, value: *?[*]u8, len: *usize) u32;
extern "env" fn proxy_replace_header_map_value(map: u32, key: [*]const u8, key_len: usize, value: [*]const u8, len: usize) u32;
extern "env" fn proxy_send_local_response(status: u32, details: ?[*]const u8, details_len: usize, body: [*]const u8, len: usize, headers: ?[*]const u8, headers_len: usize, grpc_status: i32) u32;

export fn proxy_abi_version_0_2_1() void {}

export fn proxy_on_memory_allocate(len: usize) ?[*]u8 {
    const bytes = allocator.alloc(u8, len) catch return null;
    return bytes.ptr;
}

/// A property's value, to be freed; empty where there is none.
fn property(path: []const u8) []u8 {
    var value: ?[*]u8 = null;
    var len: usize = 0;
    if (proxy_get_property(path.ptr, path.len, &value, &len) != 0) return &.{};
    const bytes = value orelse return &.{};
    return bytes[0..len];
}

export fn proxy_on_request_headers(_: u32, _: u32, _: u32) u32 {
    const path = property("request\x00path");
    defer allocator.free(path);
    const line = std.mem.concat(allocator, u8, &.{ me, " sees ", path }) catch return 1;
    defer allocator.free(line);
    _ = proxy_log(info, line.ptr, line.len);
    if (!std.mem.eql(u8, path, "/closed")) return 0;
    const body = "closed by " ++ me;
    _ = proxy_send_local_response(403, null, 0, body, body.len, null, 0, -1);
    return 1;
}

export fn proxy_on_response_headers(_: u32, _: u32, _: u32) u32 {
    const protocol = property("request\x00protocol");
    defer allocator.free(protocol);
    const value = std.mem.concat(allocator, u8, &.{ me, " over ", protocol }) catch return 1;
    defer allocator.free(value);
    const name = "x-guest";
    _ = proxy_replace_header_map_value(response_headers, name, name.len, value.ptr, value.len);
    return 0;
}
