//! What one peer showed in one round, and which rate all peers of a round are put under.

use crate::kind::Kind;
use crate::load::{Outcome, Protocol};
use crate::statistics::quantile;
use std::time::Duration;

/// The thousandths of requests for which a latency is kept.
pub const PER_MILLE: [usize; 27] = [
    1, 10, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600, 650, 700, 750, 800, 850, 900,
    925, 950, 975, 990, 995, 998, 999,
];

/// A measurement with a closed loop: as many requests as go through.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Saturation {
    /// Requests a second.
    pub rps: f64,
    /// CPU time of the peer a request, in µs.
    pub cpu_us: f64,
    /// CPU time of the load generator as a share of the time that passed.
    pub load_share: f64,
    /// The same of the upstream.
    pub upstream_share: f64,
}

/// A measurement with an open loop: requests start at a constant rate, and latencies count from the intended start.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Open {
    /// Requests a second, intended.
    pub rate: f64,
    /// CPU time of the peer a request, in µs.
    pub cpu_us: f64,
    /// Latencies in µs, one for each of [`PER_MILLE`].
    pub latencies_us: Vec<f64>,
    /// CPU time of the load generator as a share of the time that passed.
    pub load_share: f64,
}

impl Open {
    /// The latency in µs of so many thousandths, one of [`PER_MILLE`].
    pub fn latency_us(&self, per_mille: usize) -> Option<f64> {
        let place = PER_MILLE.iter().position(|known| *known == per_mille)?;
        self.latencies_us.get(place).copied()
    }

    /// The latencies of `outcome` as they are kept.
    pub fn latencies_us(outcome: &Outcome) -> Vec<f64> {
        PER_MILLE
            .iter()
            .map(|per_mille| micros(quantile(&outcome.latencies, *per_mille)))
            .collect()
    }
}

/// One peer's turn in one round.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Turn {
    /// The round, from 1.
    pub round: usize,
    /// Which peer.
    pub peer: Kind,
    /// Which protocol it was spoken to.
    pub protocol: Protocol,
    /// The closed loop.
    pub saturation: Saturation,
    /// The open loop.
    pub open: Open,
    /// CPU time a request in µs with a closed loop and tokens that are in no cache, where that was asked for.
    pub cpu_uncached_us: Option<f64>,
    /// Resident memory in MiB after the open loop; nothing for the upstream, which is in the load's process.
    pub resident_mib: Option<f64>,
}

/// A duration in µs.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The share of the slower one's saturation that the open loop runs at.
pub const LOAD_FACTOR: f64 = 0.7;

/// The two whose 99th percentiles are compared: the same four modules here and in Envoy.
pub const REFERENCE: [Kind; 2] = [Kind::PortcullisFour, Kind::EnvoyFour];

/// The rate of a round's open loop, the same for all peers: [`LOAD_FACTOR`] of what the slower of [`REFERENCE`] did in this round's closed
/// loop, or of what the slowest peer did where not both take part. Nothing for no peer.
pub fn open_rate(saturations: &[(Kind, f64)]) -> Option<f64> {
    let slowest = |of: &[Kind]| {
        saturations
            .iter()
            .filter(|(kind, _)| of.is_empty() || of.contains(kind))
            .map(|(_, rps)| *rps)
            .reduce(f64::min)
    };
    let both = REFERENCE
        .iter()
        .all(|kind| saturations.iter().any(|(known, _)| known == kind));
    Some(slowest(if both { &REFERENCE } else { &[] })? * LOAD_FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_seven_tenths_of_the_slower_of_the_two() {
        let all = [
            (Kind::EnvoyLua, 4000.0),
            (Kind::PortcullisFour, 30_000.0),
            (Kind::EnvoyFour, 10_000.0),
        ];
        assert_eq!(open_rate(&all), Some(7000.0));
        let swapped = [(Kind::PortcullisFour, 9000.0), (Kind::EnvoyFour, 10_000.0)];
        assert_eq!(open_rate(&swapped), Some(6300.0));
        // Without one of them, nobody is driven beyond what it can do.
        assert_eq!(open_rate(&all[..2]), Some(2800.0));
        assert_eq!(open_rate(&[]), None);
    }

    #[test]
    fn latencies_are_found_by_their_share() {
        let outcome = Outcome {
            latencies: (1..=1000).map(Duration::from_micros).collect(),
            ..Outcome::default()
        };
        let open = Open {
            rate: 1.0,
            cpu_us: 1.0,
            latencies_us: Open::latencies_us(&outcome),
            load_share: 0.0,
        };
        assert!((open.latency_us(990).expect("kept") - 990.0).abs() < 1e-6);
        assert!((open.latency_us(500).expect("kept") - 500.0).abs() < 1e-6);
        assert_eq!(open.latency_us(42), None);
    }
}
