//! Bounds on what a policy may say, each with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A policy is written by hand; more is a mistake (a log, a binary).
pub(super) const POLICY_BYTES_MAX: u64 = 4 << 20;
/// Ten thousand routes have half as many. What aliases repeat counts each time: without a bound, few bytes become many gigabytes.
pub(super) const POLICY_NODES_MAX: usize = 200_000;
/// Twice the file, since what aliases repeat counts too.
pub(super) const POLICY_TEXT_BYTES_MAX: usize = 8 << 20;
/// Reading recurses once a level; what people write has under ten.
pub(super) const POLICY_DEPTH_MAX: usize = 64;
/// Every problem names the keys on its way.
pub(super) const KEY_BYTES_MAX: usize = 1024;
/// Names are compared with each other, in quadratic time.
pub(super) const ITEMS_MAX: usize = 10_000;
/// Each is a VM in every worker, and a place in the chain of every route.
pub(super) const FILTERS_MAX: usize = 256;
/// A problem is read by people; what it quotes may be anything.
pub(super) const REASON_CHARS_MAX: usize = 4096;
/// Certificates and keys; the largest system bundle is under 1 MiB.
pub(super) const PEM_BYTES_MAX: u64 = 4 << 20;
/// Compiled controls are under 1 MiB; Go guests reach 10.
pub(super) const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Names become metric labels and Envoy names.
pub(super) const NAME_BYTES_MAX: usize = 64;
/// Nothing waits for ever and nothing gives up before a packet can travel.
pub(super) const TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
/// More threads than this is a mistake on any machine we know.
pub(super) const WORKERS: RangeInclusive<u64> = 1..=512;
/// A VM needs a page to start; Wasm's 32-bit memories end at 4 GiB, and Envoy's host at 1.
pub(super) const MEMORY_BYTES: RangeInclusive<u64> = (1 << 20)..=(1 << 30);
/// Callouts of one plugin on one worker: the runtime's own bound.
pub(super) const CALLOUTS: RangeInclusive<u64> =
    0..=portcullis_runtime::limits::CALLOUTS_MAX as u64;
/// Lines of one plugin on one worker: a million four-KiB lines a second is more than any disk takes.
pub(super) const LOG_LINES: RangeInclusive<u64> = 0..=1_000_000;
/// As long as a guest may ask for.
pub(super) const PROPERTY_PATH_BYTES_MAX: usize =
    portcullis_runtime::limits::PROPERTY_PATH_BYTES_MAX;
/// Four lines, two of them comments, which minisign itself cuts at 8 KiB.
pub(super) const SIGNATURE_BYTES_MAX: u64 = 32 << 10;
/// A paused body is held in memory once a request, so it must stay far below the machine's.
pub(super) const BODY_BYTES: RangeInclusive<u64> = 0..=(64 << 20);
/// A callback's CPU time: the epoch ticks every 5 ms, and a request must not hold its worker for longer than a second.
pub(super) const CALLBACK_TIME: RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_secs(1);
/// The CPU time of all callbacks on one request: counted in epoch ticks of 5 ms, so less says nothing.
pub(super) const REQUEST_TIME: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);
/// VMs of a plugin on one worker: the standing one and one more, up to the pools of the whole process.
pub(super) const VMS: RangeInclusive<u64> = 2..=4096;
/// More than one ready at once would only be more that wait.
pub(super) const SPARE_VMS: RangeInclusive<u64> = 0..=1;
/// Start and configure: may compile keys or build tables, but a reload must end.
pub(super) const START_TIME: RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_secs(60);
