//! Every bound the network side keeps, each with its reason. What an operator may change stands in the policy; what stands here is
//! fixed, since a larger value would cost memory that a client can make the proxy spend.
//!
//! Envoy's default is named where it has one, so that a policy moves between the two hosts without surprises.

use std::time::Duration;

/// Bytes of a request head. Envoy's `max_request_headers_kb`; above it the client gets 431.
pub(crate) const REQUEST_HEAD_BYTES_MAX: usize = 60 * 1024;
/// Header fields of a request. Envoy's `max_headers_count`, and hyper's HTTP/1 default.
pub(crate) const REQUEST_HEADERS_MAX: usize = 100;
/// Bytes of a response head. Upstreams are the operator's own, so twice what a client may send.
pub(crate) const RESPONSE_HEAD_BYTES_MAX: usize = 128 * 1024;
/// Open client connections of the whole process; above it, accepting waits. Each costs a few kilobytes idle, 100 kB busy.
pub(crate) const CONNECTIONS_MAX: usize = 20_000;
/// Connections waiting in the kernel. Linux clips it to `net.core.somaxconn`.
pub(crate) const ACCEPT_BACKLOG: i32 = 1024;
/// A TLS handshake: two round trips and one signature; longer is a slow or a hostile client.
pub(crate) const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From accept to the first complete request head (RFC 9110 sets none; nginx waits 60 s, hyper 30 s). Bounds slow-loris clients.
pub(crate) const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// From the end of a request to the complete head of the next. Longer than load balancers' usual 60 s, so that they close first.
pub(crate) const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// No byte in or out while requests are open. Envoy's `stream_idle_timeout`.
pub(crate) const CONNECTION_STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How often idle connections are looked for: one pass a worker costs less than a timer a request.
pub(crate) const SWEEP_PERIOD: Duration = Duration::from_secs(1);
/// How often a worker that drains looks at its connections.
pub(crate) const DRAIN_PERIOD: Duration = Duration::from_millis(20);
/// From graceful close to hard close of an idle connection.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long a connection that is closed with unread bytes lingers, so that its last answer is not lost to a reset.
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much is read and dropped meanwhile: the rest of a head or a small body, not an upload.
pub(crate) const LINGER_BYTES_MAX: usize = 256 * 1024;

/// Bytes on their way to one side of a TCP connection before nothing more is read from the other. Envoy's `per_connection_buffer_limit_bytes`
/// is four times that; this is twice a read from TLS.
pub(crate) const TCP_BUFFER_BYTES: usize = 256 * 1024;
/// Bytes read from a TCP connection at once: a TLS record.
pub(crate) const TCP_READ_BYTES: usize = 16 * 1024;

/// Concurrent streams of one HTTP/2 connection. Envoy's edge advice, RFC 9113 §5.1.2 asks for at least 100.
pub(crate) const H2_STREAMS_MAX: u32 = 100;
/// Flow-control window of one HTTP/2 stream: what an unread request body may hold.
pub(crate) const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Flow-control window of one HTTP/2 connection: what all its unread bodies may hold.
pub(crate) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response bytes one HTTP/2 stream may have queued.
pub(crate) const H2_SEND_BUFFER: usize = 128 * 1024;
/// Streams a client reset before they were accepted (CVE-2023-44487, rapid reset); above it the connection is closed.
pub(crate) const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams this side reset for a client's fault (CVE-2025-8671, `MadeYouReset`); above it the connection is closed.
pub(crate) const H2_LOCAL_RESETS_MAX: usize = 256;

/// Idle connections kept to one cluster by one worker.
pub(crate) const POOL_IDLE_MAX: usize = 128;
/// Streams on one HTTP/2 connection to an upstream before another is opened.
pub(crate) const POOL_H2_STREAMS_MAX: usize = 100;
/// Addresses one DNS name may give.
pub(crate) const DNS_ADDRESSES_MAX: usize = 64;
/// How often names are resolved again. Envoy's `dns_refresh_rate`.
pub(crate) const DNS_PERIOD: Duration = Duration::from_secs(5);
/// How long the first resolution may hold up the start.
pub(crate) const DNS_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of the answer to a plugin's callout: a JWKS is some kilobytes; a plugin's memory is 64 MiB.
pub(crate) const CALLOUT_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Callouts of one worker under way at once: they are the plugins', so one client must not multiply them without end.
pub(crate) const CALLOUTS_MAX: usize = 1024;
/// Bytes a plugin may have queued on one gRPC stream that its upstream does not take. One message of the largest size fits.
pub(crate) const GRPC_QUEUED_BYTES_MAX: usize =
    portcullis_runtime::limits::GRPC_MESSAGE_BYTES_MAX + 64 * 1024;
/// Redis calls that wait on one connection, those included that nobody waits for any more: a plugin's VMs may die faster than Redis answers.
pub(crate) const REDIS_CALLS_MAX: usize = CALLOUTS_MAX;
/// Bytes of Redis commands that are gathered for one write: later ones can still be forgotten.
pub(crate) const REDIS_WRITE_BYTES: usize = 64 * 1024;
/// Bytes read from Redis at once: a TLS record.
pub(crate) const REDIS_READ_BYTES: usize = 16 * 1024;
/// The longest a plugin may ask a callout to take.
pub(crate) const CALLOUT_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Parsed public keys one worker keeps for `verify_signature`: a JWKS has fewer than ten, a key some kilobytes.
pub(crate) const KEYS_MAX: usize = 256;
/// Bytes of a public key given to `verify_signature`; RSA-8192 in PEM is 1.5 kB.
pub(crate) const KEY_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a private key given to `sign`; RSA-8192 in PEM is 6.5 kB.
pub(crate) const PRIVATE_KEY_BYTES_MAX: usize = 16 * 1024;
/// Bytes given to `compress`: a hostcall's time counts for no callback's bound before it returns, and this takes 20 ms. Bodies have no more.
pub(crate) const COMPRESS_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that `uncompress` may make, the most that the runtime hands to a guest: zlib packs zeros a thousand to one.
pub(crate) const UNCOMPRESS_BYTES_MAX: usize = portcullis_runtime::limits::FOREIGN_RESULT_BYTES_MAX;

/// Access-log lines waiting for the writer; above it they are dropped and counted: a slow disk must not stop requests.
pub(crate) const ACCESS_LOG_LINES_MAX: usize = 16 * 1024;
/// Epoch tick: the grain at which a callback's time is checked (design: 10 ms of CPU a callback).
pub(crate) const EPOCH_PERIOD: Duration = Duration::from_millis(5);
/// Bytes of a compiled module in the cache: the largest built-in one takes 2 MB.
pub(crate) const MODULE_CACHE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of all files of the module cache: hundreds of compiled and pulled modules. What the running policy needs stays above it, too.
pub(crate) const MODULE_CACHE_FOLDER_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes of an image's manifest: what the OCI distribution spec has registries take.
pub(crate) const REGISTRY_MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of a token, of what a registry says of an error, and of what a credential helper prints: some kilobytes.
pub(crate) const REGISTRY_ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// How often a registry may send elsewhere for one blob: once, to where it stores it; more is a loop.
pub(crate) const REGISTRY_REDIRECTS_MAX: usize = 5;
/// Connecting to a registry, and the TLS handshake with it, each.
pub(crate) const REGISTRY_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole pull. The largest module on a slow line; a start or a reload waits for it.
pub(crate) const REGISTRY_PULL_TIMEOUT: Duration = Duration::from_secs(60);
/// A whole push: nobody but its user waits for it.
pub(crate) const REGISTRY_PUSH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a credential helper may take: some ask a keyring or a cloud.
pub(crate) const CREDENTIAL_HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of pulled modules that the process holds, the newest at least. The policy that runs has the same ones, so they cost nothing twice.
pub(crate) const PULLED_BYTES_HELD: usize = 64 * 1024 * 1024;
/// Earlier policies that exchanges of one worker may still run on. Each holds a VM of every plugin; a reload above it waits, at most for the
/// drain time-out, and then ends the plugins of the earliest.
pub(crate) const EDITIONS_EARLIER_MAX: usize = 4;
/// How long a plugin that was asked to end may go on, for a last callout say.
pub(crate) const EDITION_END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often such a plugin is looked at.
pub(crate) const EDITION_END_PERIOD: Duration = Duration::from_millis(50);
/// How often a reload that waits for room looks again.
pub(crate) const RELOAD_ROOM_PERIOD: Duration = Duration::from_millis(5);
/// How often the policy file is looked at. What is read must have stood still for so long: an editor may be half through.
pub(crate) const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// Problems of a refused reload that `/policy` shows; the log has all.
pub(crate) const RELOAD_PROBLEMS_SHOWN: usize = 100;
/// How long a filter may hold an exchange. Envoy's `stream_idle_timeout`.
pub(crate) const PAUSE_TIMEOUT: Duration = Duration::from_secs(300);
/// Local responses in place of local responses, within one exchange: one a filter would do, more is a loop.
pub(crate) const LOCAL_RESPONSES_MAX: usize = 64;
/// How long `portcullis test` waits for timers while a control holds a request: far longer than controls' timers that answer for something, and
/// short enough for someone who looks on.
pub(crate) const HELD_MAX: Duration = Duration::from_secs(5);
