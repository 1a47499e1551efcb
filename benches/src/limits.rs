//! What a reader of a comparison has to know before believing its figures.

use crate::ratios::RATIOS;
use crate::report::Report;
use crate::statistics::{median, spread};

/// Where load generator and upstream, on one processor, take more of it than this, they and not the peer are the limit.
const BUSY: f64 = 0.95;
/// A peer that is asked for more than this share of what it can do queues, and its latencies are of the queue.
const OVERLOADED: f64 = 0.9;
/// More of the processors' time that the hypervisor took than this is worth a word.
const STOLEN: f64 = 0.03;

impl Report {
    /// What a reader has to know before believing the figures.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if self.machine.pinning.is_none() {
            limits.push(
                "One processor for all: peers, load and upstream took it from each other, so latencies and requests/s say little."
                    .to_owned(),
            );
        }
        if self.machine.load_average > 0.5 {
            limits.push(format!(
                "The load average was {:.1} at the beginning: other work ran beside, so absolute figures and single rounds say little, ratios more.",
                self.machine.load_average
            ));
        }
        if let Some(stolen) = spread(&self.stolen_shares).filter(|it| it.max > STOLEN) {
            limits.push(format!(
                "The hypervisor took {:.0} % of the processors' time in the median round, {:.0} % in the worst: CPU times are too high by that, ratios less so.",
                stolen.median * 100.0,
                stolen.max * 100.0
            ));
        }
        if self.rounds() < 15 {
            limits.push(format!(
                "{} rounds: a look, not a measurement; 15 are the least that a ratio should be quoted from.",
                self.rounds()
            ));
        }
        let shared = self
            .machine
            .pinning
            .is_none_or(|pinning| pinning.load == pinning.upstream);
        for subject in self.subjects() {
            let (kind, protocol) = subject;
            let busy = median(&self.values(subject, |turn| {
                let it = &turn.saturation;
                let upstream = if shared { it.upstream_share } else { 0.0 };
                Some(it.load_share + upstream)
            }));
            if busy.is_some_and(|busy| busy > BUSY) {
                limits.push(format!(
                    "`{kind}` over {protocol}: the load's processor was full, so its requests/s are a lower bound."
                ));
            }
            let overloaded =
                median(&self.values(subject, |turn| Some(turn.open.rate / turn.saturation.rps)));
            if let Some(share) = overloaded.filter(|share| *share > OVERLOADED) {
                limits.push(format!(
                    "`{kind}` over {protocol}: the open loop asked for {:.0} % of what it can do, so its latencies are of a queue.",
                    share * 100.0
                ));
            }
        }
        for ratio in RATIOS.iter().filter(|ratio| ratio.aim.is_some()) {
            match ratio.spread(&self.turns, self.protocol) {
                None => limits.push(format!(
                    "`{}` is missing: {} or {} took no part over its protocol.",
                    ratio.key, ratio.peers[0], ratio.peers[1]
                )),
                Some(it) if it.max > 1.5 * it.min => limits.push(format!(
                    "`{}` moved from {:.2} to {:.2} between rounds.",
                    ratio.key, it.min, it.max
                )),
                Some(_) => {}
            }
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use crate::report::Report;
    use crate::report::tests::report;

    #[test]
    fn limits_are_said_where_there_are_some() {
        let said =
            |report: &Report, what: &str| report.limits().iter().any(|limit| limit.contains(what));
        let good = report(15);
        for what in [
            "load average",
            "hypervisor",
            "a look",
            "was full",
            "`envoy-four` over",
            "moved",
        ] {
            assert!(!said(&good, what), "{what}");
        }
        // The turns above ask Lua for 7000 of its 7200.
        assert!(said(
            &good,
            "`envoy-lua` over HTTP/1.1: the open loop asked for 97 %"
        ));
        assert!(said(&good, "`cpu_plain_vs_nginx` is missing"));
        let mut bad = report(2);
        bad.machine.load_average = 3.0;
        if let Some(turn) = bad.turns.first_mut() {
            turn.open.cpu_us = 90.0;
        }
        for turn in &mut bad.turns {
            turn.saturation.load_share = 0.8;
        }
        bad.stolen_shares = vec![0.4, 0.02];
        for what in [
            "load average was 3.0",
            "21 % of the processors' time in the median round, 40 % in the worst",
            "2 rounds",
            "was full",
            "moved from",
        ] {
            assert!(said(&bad, what), "{what}");
        }
    }
}
