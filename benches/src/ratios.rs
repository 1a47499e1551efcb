//! The ratios that a comparison is made for: of two peers in the same round, then the median over the rounds.

use crate::figures::Turn;
use crate::kind::Kind;
use crate::load::Protocol;
use crate::statistics::{Spread, spread};
use std::collections::BTreeMap;

/// A figure of a turn; nothing where it was not taken.
pub type Figure = fn(&Turn) -> Option<f64>;

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Aim {
    /// Whether `value` meets it.
    pub fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// One ratio: `figure` of the first peer to that of the second.
#[derive(Clone, Copy)]
pub struct Ratio {
    /// Its key in the JSON.
    pub key: &'static str,
    /// What it says, for people.
    pub title: &'static str,
    /// Whose figure is divided by whose.
    pub peers: [Kind; 2],
    /// Over this protocol always; over the run's where nothing is said.
    pub protocol: Option<Protocol>,
    /// Which figure.
    pub figure: Figure,
    /// What is aimed at.
    pub aim: Option<Aim>,
    /// Why the aim is missed where it is, as profiling found (docs/performance.md).
    pub obstacle: Option<&'static str>,
}

const CPU: Figure = |turn| Some(turn.open.cpu_us);
const CPU_AT_SATURATION: Figure = |turn| Some(turn.saturation.cpu_us);
const RPS: Figure = |turn| Some(turn.saturation.rps);
const P99: Figure = |turn| turn.open.latency_us(990);

const fn ratio(key: &'static str, title: &'static str, peers: [Kind; 2], figure: Figure) -> Ratio {
    Ratio {
        key,
        title,
        peers,
        protocol: None,
        figure,
        aim: None,
        obstacle: None,
    }
}

impl Ratio {
    const fn over(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    const fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    const fn obstacle(mut self, obstacle: &'static str) -> Self {
        self.obstacle = Some(obstacle);
        self
    }

    /// Its spread over the rounds that have both figures, in a run over `protocol`.
    pub fn spread(&self, turns: &[Turn], protocol: Protocol) -> Option<Spread> {
        let protocol = self.protocol.unwrap_or(protocol);
        let figures = |kind| -> BTreeMap<usize, f64> {
            turns
                .iter()
                .filter(|turn| (turn.peer, turn.protocol) == (kind, protocol))
                .filter_map(|turn| Some((turn.round, (self.figure)(turn)?)))
                .collect()
        };
        let [ours, theirs] = self.peers.map(figures);
        let quotients: Vec<f64> = ours
            .iter()
            .filter_map(|(round, ours)| Some(ours / theirs.get(round)?))
            .filter(|quotient| quotient.is_finite())
            .collect();
        spread(&quotients)
    }
}

/// All of them, those with an aim first.
pub const RATIOS: [Ratio; 25] = {
    use Aim::{AtLeast, AtMost};
    use Kind::{
        Baseline, BaselineFour, Direct, Envoy, EnvoyFour, EnvoyLua, EnvoyNative, EnvoyPolicy,
        Nginx, NginxRules, Portcullis, PortcullisFour, PortcullisPolicy,
    };
    [
        ratio(
            "cpu_plain_vs_nginx",
            "CPU a request over HTTP/2, no filter, ours / nginx",
            [Portcullis, Nginx],
            CPU,
        )
        .over(Protocol::Http2)
        .aim(AtMost(1.0))
        .obstacle(
            "fewer system calls than nginx, but more instructions in user space: h2 and hyper are a third of them, header maps and memory a quarter",
        ),
        ratio(
            "cpu_plain_vs_nginx_http1",
            "CPU a request over HTTP/1.1, no filter, ours / nginx",
            [Portcullis, Nginx],
            CPU,
        )
        .over(Protocol::Http1)
        .aim(AtMost(1.2))
        .obstacle("as over HTTP/2"),
        ratio(
            "cpu_four_vs_envoy_wasm",
            "CPU a request, four controls, ours / Envoy Wasm",
            [PortcullisFour, EnvoyFour],
            CPU,
        )
        .aim(AtMost(0.3))
        .obstacle(
            "at this rate ours is idle half of the time, and 12 µs a request more go to waking the processor of client and upstream, 14 to user code that runs half as fast after each sleep: nginx without a filter is at 0.36; see the same at saturation",
        ),
        ratio(
            "cpu_four_vs_envoy_native",
            "CPU a request, four controls, ours / Envoy's native filters",
            [PortcullisFour, EnvoyNative],
            CPU,
        )
        .aim(AtMost(0.5))
        .obstacle(
            "as against Envoy Wasm: what idling costs at this rate is the same for both, and more than half of ours; see the same at saturation",
        ),
        ratio(
            "rps_four_vs_envoy_wasm",
            "requests/s at saturation, four controls, ours / Envoy Wasm",
            [PortcullisFour, EnvoyFour],
            RPS,
        )
        .aim(AtLeast(3.0)),
        ratio(
            "p99_four_vs_envoy_wasm",
            "p99 at 70 % of the slower one's saturation, four controls, ours / Envoy Wasm",
            [PortcullisFour, EnvoyFour],
            P99,
        )
        .aim(AtMost(0.5)),
        ratio(
            "cpu_policy_module_vs_native_in_envoy",
            "CPU a request inside Envoy, one policy module / native filters",
            [EnvoyPolicy, EnvoyNative],
            CPU,
        )
        .aim(AtMost(1.05))
        .obstacle(
            "each entry into V8 costs some 4 µs whatever the guest does, and four callbacks with five calls for memory are needed",
        ),
        ratio(
            "cpu_four_over_plain",
            "CPU a request, ours, four controls / no filter",
            [PortcullisFour, Portcullis],
            CPU,
        )
        .aim(AtMost(1.15))
        .obstacle(
            "a quarter of what they add is guest code, an eighth the kernel, the rest the runtime, wasmtime and header maps, flat over some hundred functions",
        ),
        ratio(
            "cpu_policy_module_over_plain",
            "CPU a request, ours, one policy module / no filter",
            [PortcullisPolicy, Portcullis],
            CPU,
        ),
        ratio(
            "cpu_policy_module_vs_envoy_policy_module",
            "CPU a request, one policy module, ours / Envoy Wasm",
            [PortcullisPolicy, EnvoyPolicy],
            CPU,
        ),
        ratio(
            "cpu_policy_module_vs_envoy_native",
            "CPU a request, one policy module here / Envoy's native filters",
            [PortcullisPolicy, EnvoyNative],
            CPU,
        ),
        ratio(
            "cpu_four_vs_envoy_lua",
            "CPU a request, our four controls / Envoy with Lua, which verifies nothing",
            [PortcullisFour, EnvoyLua],
            CPU,
        ),
        ratio(
            "cpu_four_vs_nginx_rules",
            "CPU a request, our four controls / nginx with rules, which verify nothing",
            [PortcullisFour, NginxRules],
            CPU,
        ),
        ratio(
            "cpu_plain_vs_envoy",
            "CPU a request, no filter, ours / Envoy",
            [Portcullis, Envoy],
            CPU,
        ),
        ratio(
            "cpu_plain_vs_nginx_at_saturation",
            "CPU a request at saturation over HTTP/2, no filter, ours / nginx",
            [Portcullis, Nginx],
            CPU_AT_SATURATION,
        )
        .over(Protocol::Http2),
        ratio(
            "cpu_plain_vs_envoy_at_saturation",
            "CPU a request at saturation, no filter, ours / Envoy",
            [Portcullis, Envoy],
            CPU_AT_SATURATION,
        ),
        ratio(
            "cpu_four_vs_envoy_wasm_at_saturation",
            "CPU a request at saturation, four controls, ours / Envoy Wasm",
            [PortcullisFour, EnvoyFour],
            CPU_AT_SATURATION,
        ),
        ratio(
            "cpu_four_vs_envoy_native_at_saturation",
            "CPU a request at saturation, four controls, ours / Envoy's native filters",
            [PortcullisFour, EnvoyNative],
            CPU_AT_SATURATION,
        ),
        ratio(
            "cpu_policy_module_vs_native_in_envoy_at_saturation",
            "CPU a request inside Envoy at saturation, one policy module / native filters",
            [EnvoyPolicy, EnvoyNative],
            CPU_AT_SATURATION,
        ),
        ratio(
            "cpu_four_over_plain_at_saturation",
            "CPU a request at saturation, ours, four controls / no filter",
            [PortcullisFour, Portcullis],
            CPU_AT_SATURATION,
        ),
        ratio(
            "rps_plain_vs_nginx",
            "requests/s at saturation over HTTP/2, no filter, ours / nginx",
            [Portcullis, Nginx],
            RPS,
        )
        .over(Protocol::Http2),
        ratio(
            "rps_plain_vs_direct",
            "requests/s at saturation, ours without a filter / no proxy",
            [Portcullis, Direct],
            RPS,
        ),
        ratio(
            "p99_plain_vs_direct",
            "p99, ours without a filter / no proxy",
            [Portcullis, Direct],
            P99,
        ),
        ratio(
            "cpu_plain_vs_baseline",
            "CPU a request, no filter, ours / baseline",
            [Portcullis, Baseline],
            CPU,
        ),
        ratio(
            "cpu_four_vs_baseline",
            "CPU a request, four controls, ours / baseline",
            [PortcullisFour, BaselineFour],
            CPU,
        ),
    ]
};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::figures::{Open, PER_MILLE, Saturation};

    /// A turn whose CPU at the open loop, requests/s and p99 are given; at saturation, CPU is half as much.
    pub(crate) fn turn(
        round: usize,
        peer: Kind,
        protocol: Protocol,
        [cpu, rps, p99]: [f64; 3],
    ) -> Turn {
        let latency = |per_mille: &usize| if *per_mille < 990 { p99 / 2.0 } else { p99 };
        Turn {
            round,
            peer,
            protocol,
            saturation: Saturation {
                rps,
                cpu_us: cpu / 2.0,
                load_share: 0.5,
                upstream_share: 0.25,
            },
            open: Open {
                rate: 7000.0,
                cpu_us: cpu,
                latencies_us: PER_MILLE.iter().map(latency).collect(),
                load_share: 0.4,
            },
            cpu_uncached_us: None,
            resident_mib: Some(12.0),
        }
    }

    fn by_key(key: &str) -> &'static Ratio {
        RATIOS
            .iter()
            .find(|ratio| ratio.key == key)
            .expect("a ratio of that name")
    }

    #[test]
    fn the_median_is_of_ratios_and_not_the_ratio_of_medians() {
        let h1 = Protocol::Http1;
        let mut turns = Vec::new();
        // Ratios 0.5, 0.2 and 0.4; the medians' would be 20 / 50.
        for (round, ours, theirs) in [(1, 10.0, 20.0), (2, 20.0, 100.0), (3, 20.0, 50.0)] {
            turns.push(turn(round, Kind::EnvoyFour, h1, [theirs, 1000.0, 900.0]));
            turns.push(turn(round, Kind::PortcullisFour, h1, [ours, 4000.0, 90.0]));
        }
        // A round that only one of them has, and one over another protocol, count in nothing.
        turns.push(turn(4, Kind::PortcullisFour, h1, [900.0, 1.0, 1.0]));
        turns.push(turn(
            1,
            Kind::PortcullisFour,
            Protocol::Http2,
            [900.0, 1.0, 1.0],
        ));
        let cpu = by_key("cpu_four_vs_envoy_wasm").spread(&turns, h1);
        let expected = Spread {
            median: 0.4,
            min: 0.2,
            max: 0.5,
            rounds: 3,
        };
        assert_eq!(cpu, Some(expected));
        let median = |key: &str| by_key(key).spread(&turns, h1).map(|spread| spread.median);
        assert_eq!(median("rps_four_vs_envoy_wasm"), Some(4.0));
        assert_eq!(median("p99_four_vs_envoy_wasm"), Some(0.1));
        assert_eq!(median("cpu_four_vs_envoy_wasm_at_saturation"), Some(0.4));
        assert_eq!(median("cpu_four_vs_envoy_native"), None);
    }

    #[test]
    fn rounds_are_paired_by_their_number() {
        let h1 = Protocol::Http1;
        let turns = [
            turn(1, Kind::PortcullisFour, h1, [10.0, 1.0, 1.0]),
            turn(2, Kind::PortcullisFour, h1, [30.0, 1.0, 1.0]),
            turn(2, Kind::Portcullis, h1, [10.0, 1.0, 1.0]),
        ];
        let over = by_key("cpu_four_over_plain").spread(&turns, h1);
        assert_eq!(over.map(|it| (it.median, it.rounds)), Some((3.0, 1)));
    }

    #[test]
    fn nginx_is_compared_over_both_protocols_whatever_the_run_speaks() {
        let turns = [
            turn(1, Kind::Portcullis, Protocol::Http1, [30.0, 1.0, 1.0]),
            turn(1, Kind::Nginx, Protocol::Http1, [20.0, 1.0, 1.0]),
            turn(1, Kind::Portcullis, Protocol::Http2, [20.0, 1.0, 1.0]),
            turn(1, Kind::Nginx, Protocol::Http2, [40.0, 1.0, 1.0]),
        ];
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let median = |key: &str| by_key(key).spread(&turns, protocol).map(|it| it.median);
            assert_eq!(median("cpu_plain_vs_nginx"), Some(0.5));
            assert_eq!(median("cpu_plain_vs_nginx_http1"), Some(1.5));
        }
    }

    #[test]
    fn aims_and_keys() {
        assert!(Aim::AtMost(1.0).met(1.0) && !Aim::AtMost(1.0).met(1.01));
        assert!(Aim::AtLeast(3.0).met(3.0) && !Aim::AtLeast(3.0).met(2.99));
        let mut keys: Vec<&str> = RATIOS.iter().map(|ratio| ratio.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), RATIOS.len());
        // What may be missed on one machine and met on another has its reason ready.
        assert!(
            RATIOS
                .iter()
                .all(|ratio| ratio.obstacle.is_none() || ratio.aim.is_some())
        );
    }
}
