//! The hostcalls as they are: raw imports, and one table that calls them by name.
//!
//! A signature has a letter a parameter: `n` a number, `l` a 64-bit number, `s` bytes (pointer and length), `o` a place for a
//! 32-bit number, `q` for a 64-bit one, `O` for bytes (two places). The places come last.

macro_rules! hostcalls {
    ($($name:ident $signature:literal ($($argument:ident: $type:ty),*);)+) => {
        #[link(wasm_import_module = "env")]
        unsafe extern "C" {
            $(safe fn $name($($argument: $type),*) -> u32;)+
        }

        /// The signature of a hostcall, by its name without `proxy_`.
        pub(crate) fn signature(name: &str) -> Option<&'static str> {
            match format!("proxy_{name}").as_str() {
                $(stringify!($name) => Some($signature),)+
                _ => None,
            }
        }

        /// Makes a hostcall; `None` where there is none of that name, or the arguments are too few.
        pub(crate) fn call(name: &str, arguments: &[i64]) -> Option<u32> {
            let mut arguments = arguments.iter();
            Some(match format!("proxy_{name}").as_str() {
                $(stringify!($name) => $name($({
                    let $argument = *arguments.next()?;
                    $argument as $type
                }),*),)+
                _ => return None,
            })
        }
    };
}

hostcalls! {
    proxy_log "ns" (a: u32, b: u32, c: u32);
    proxy_get_log_level "o" (a: u32);
    proxy_get_current_time_nanoseconds "q" (a: u32);
    proxy_set_tick_period_milliseconds "n" (a: u32);
    proxy_done "" ();
    proxy_set_effective_context "n" (a: u32);
    proxy_get_buffer_bytes "nnnO" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_get_buffer_status "noo" (a: u32, b: u32, c: u32);
    proxy_set_buffer_bytes "nnns" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_get_header_map_size "no" (a: u32, b: u32);
    proxy_get_header_map_pairs "nO" (a: u32, b: u32, c: u32);
    proxy_set_header_map_pairs "ns" (a: u32, b: u32, c: u32);
    proxy_get_header_map_value "nsO" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_add_header_map_value "nss" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_replace_header_map_value "nss" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_remove_header_map_value "ns" (a: u32, b: u32, c: u32);
    proxy_continue_stream "n" (a: u32);
    proxy_close_stream "n" (a: u32);
    proxy_get_status "oO" (a: u32, b: u32, c: u32);
    proxy_send_local_response "nsssn" (a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32);
    proxy_http_call "ssssno" (a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: u32, j: u32);
    proxy_grpc_call "sssssno" (a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: u32, j: u32, k: u32, l: u32);
    proxy_grpc_stream "sssso" (a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32, i: u32);
    proxy_grpc_send "nsn" (a: u32, b: u32, c: u32, d: u32);
    proxy_grpc_cancel "n" (a: u32);
    proxy_grpc_close "n" (a: u32);
    proxy_set_shared_data "ssn" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_get_shared_data "sOo" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_register_shared_queue "so" (a: u32, b: u32, c: u32);
    proxy_resolve_shared_queue "sso" (a: u32, b: u32, c: u32, d: u32, e: u32);
    proxy_enqueue_shared_queue "ns" (a: u32, b: u32, c: u32);
    proxy_dequeue_shared_queue "nO" (a: u32, b: u32, c: u32);
    proxy_define_metric "nso" (a: u32, b: u32, c: u32, d: u32);
    proxy_record_metric "nl" (a: u32, b: i64);
    proxy_increment_metric "nl" (a: u32, b: i64);
    proxy_get_metric "nq" (a: u32, b: u32);
    proxy_get_property "sO" (a: u32, b: u32, c: u32, d: u32);
    proxy_set_property "ss" (a: u32, b: u32, c: u32, d: u32);
    proxy_call_foreign_function "ssO" (a: u32, b: u32, c: u32, d: u32, e: u32, f: u32);
}
