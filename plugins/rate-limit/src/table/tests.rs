//! The table among workers, when full, over time, and when the clock goes back.

use std::collections::HashMap;

use super::{Outcome, Table};
use crate::gcra::Limit;
use crate::limits::SLOTS;
use crate::testing::{Random, Shared, Worker};

const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_800_000_000 * SECOND;

fn limit(requests: u32, seconds: u64) -> Limit {
    Limit::new(
        format!("{requests}in{seconds}"),
        requests,
        seconds,
        requests,
    )
}

fn table(limits: &[Limit], shards: u32) -> Table {
    Table::new("t/".into(), limits.to_vec(), shards)
}

/// One request of the only worker.
fn count(table: &mut Table, shared: &mut Shared, key: u64, now: u64) -> Outcome {
    table
        .count(&mut Worker::alone(shared), (key, spread(key)), 1, now)
        .unwrap()
        .outcome
}

/// Keys of the tests are small numbers; their places are not.
fn spread(key: u64) -> u64 {
    Random::new(key).next()
}

#[test]
fn a_request_is_one_read_and_at_most_one_write() {
    let mut shared = Shared::default();
    let mut table = table(&[limit(2, 60)], 8);
    // (calls so far, whether it passes)
    for (calls, passes) in [
        ((1, 1), true),
        ((1, 1), true),
        ((1, 0), false),
        ((1, 0), false),
    ] {
        let mut worker = Worker::alone(&mut shared);
        let verdict = table.count(&mut worker, (1, spread(1)), 1, NOW).unwrap();
        assert_eq!(
            (worker.calls, verdict.outcome == Outcome::Passed),
            (calls, passes)
        );
    }
}

/// Before each write of one worker another one comes in between, sometimes, for the same key or for others of the
/// shard; nothing is counted twice or forgotten, from the first write on.
#[test]
fn no_count_is_lost_between_workers() {
    let limits = [limit(40, 60)];
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let (mut one, mut other) = (table(&limits, 1), table(&limits, 1));
        let mut shared = Shared::default();
        let mut passed: HashMap<u64, u32> = HashMap::new();
        for _ in 0..200 {
            let (key, rival) = (random.below(3), random.below(3));
            let mut rounds = random.below(4);
            let others = |shared: &mut Shared| {
                if rounds > 0 {
                    rounds -= 1;
                    if count(&mut other, shared, rival, NOW) == Outcome::Passed {
                        *passed.entry(rival).or_default() += 1;
                    }
                }
            };
            let outcome = one
                .count(
                    &mut Worker::among(&mut shared, others),
                    (key, spread(key)),
                    1,
                    NOW,
                )
                .unwrap()
                .outcome;
            if outcome == Outcome::Passed {
                *passed.entry(key).or_default() += 1;
            }
        }
        for key in 0..3 {
            assert_eq!(passed.get(&key), Some(&40), "key {key}, seed {seed}");
        }
    }
}

#[test]
fn what_cannot_be_counted_does_not_pass() {
    let mut shared = Shared::default();
    let (mut one, mut other) = (table(&[limit(1_000, 60)], 1), table(&[limit(1_000, 60)], 1));
    let mut worker = Worker::among(&mut shared, |shared| {
        count(&mut other, shared, 2, NOW);
    });
    let verdict = one.count(&mut worker, (1, spread(1)), 1, NOW).unwrap();
    assert_eq!(verdict.outcome, Outcome::Contended);
    assert_eq!(worker.calls, (32, 32));
}

#[test]
fn a_full_shard_refuses_new_keys_and_keeps_the_old() {
    let mut shared = Shared::default();
    let mut table = table(&[limit(2, 60)], 1);
    let keys = SLOTS as u64;
    for key in 1..=keys {
        assert_eq!(
            count(&mut table, &mut shared, key, NOW + key),
            Outcome::Passed
        );
    }
    // The first slot is free when its 30 seconds are over.
    let full = Outcome::Full {
        wait: 30 * SECOND + 1 - 99,
    };
    assert_eq!(count(&mut table, &mut shared, 99, NOW + 99), full);
    for key in 1..=keys {
        assert_eq!(
            count(&mut table, &mut shared, key, NOW + 99),
            Outcome::Passed,
            "the second request of {key}"
        );
        assert!(
            matches!(
                count(&mut table, &mut shared, key, NOW + 99),
                Outcome::Over { .. }
            ),
            "the third of {key}"
        );
    }
    // The slot of the key that came first is free a nanosecond before all others.
    let free = NOW + 1 + 60 * SECOND;
    assert_eq!(
        count(&mut table, &mut shared, 99, free - 1),
        Outcome::Full { wait: 1 }
    );
    assert_eq!(count(&mut table, &mut shared, 99, free), Outcome::Passed);
    assert_eq!(
        count(&mut table, &mut shared, 98, free),
        Outcome::Full { wait: 1 }
    );
    assert_eq!(shared.value("t/0").unwrap().len(), SLOTS * 16);
}

#[test]
fn a_flood_of_keys_takes_no_more_than_the_table() {
    let mut shared = Shared::default();
    let mut table = table(&[limit(1, 60)], 4);
    let full = (0..20_000)
        .filter(|key| {
            matches!(
                count(&mut table, &mut shared, *key, NOW),
                Outcome::Full { .. }
            )
        })
        .count();
    assert_eq!(full, 20_000 - 4 * SLOTS);
    assert_eq!(
        shared.values().map(<[u8]>::len).collect::<Vec<_>>(),
        [SLOTS * 16; 4]
    );
}

/// What `max_keys` promises: so many keys find room, though they fall on shards by chance.
#[test]
fn the_default_table_has_room_for_its_keys() {
    let checked = crate::Config::default().check().unwrap();
    let mut shared = Shared::default();
    let mut table = Table::new(checked.prefix, checked.limits, checked.shards);
    for key in 0..65_536 {
        assert_eq!(
            count(&mut table, &mut shared, key, NOW),
            Outcome::Passed,
            "key {key}"
        );
    }
}

#[test]
fn what_is_paid_off_takes_no_room() {
    let mut shared = Shared::default();
    let mut table = table(&[limit(10, 60)], 1);
    for key in 0..40 {
        count(&mut table, &mut shared, key, NOW);
    }
    assert_eq!(shared.value("t/0").unwrap().len(), 40 * 16);
    count(&mut table, &mut shared, 1, NOW + 6 * SECOND);
    assert_eq!(shared.value("t/0").unwrap().len(), 16);
}

#[test]
fn a_refused_request_counts_against_no_limit() {
    let mut shared = Shared::default();
    let limits = [limit(3, 60), limit(100, 3_600), limit(2, 1)];
    let mut table = table(&limits, 8);
    let rows = [
        // (after so many seconds, which limits refuse, what remains of each)
        (0, [false, false, false], [2, 99, 1]),
        (0, [false, false, false], [1, 98, 0]),
        (0, [false, false, true], [1, 98, 0]),
        (1, [false, false, false], [0, 97, 1]),
        (1, [true, false, false], [0, 97, 1]),
        (1, [true, false, false], [0, 97, 1]),
        (20, [false, false, false], [0, 96, 1]),
    ];
    for (row, (after, refused, remaining)) in rows.into_iter().enumerate() {
        let now = NOW + after * SECOND;
        let verdict = table
            .count(&mut Worker::alone(&mut shared), (1, spread(1)), 1, now)
            .unwrap();
        let violated = match verdict.outcome {
            Outcome::Over { violated, .. } => violated,
            _ => [false; 4],
        };
        assert_eq!(violated[..3], refused, "row {row}");
        let left: Vec<u64> = limits
            .iter()
            .zip(verdict.tats)
            .map(|(limit, tat)| limit.standing(tat, now).remaining)
            .collect();
        assert_eq!(left, remaining, "row {row}");
    }
}

/// Against a map that keeps one TAT a key for ever.
#[test]
fn agrees_with_a_map() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let limits = [
            limit(1 + random.below_u32(5), 1 + random.below(20)),
            limit(20, 120),
        ];
        let mut table = table(&limits, 8);
        let mut shared = Shared::default();
        let mut map: HashMap<u64, [u64; 2]> = HashMap::new();
        let mut now = NOW;
        for step in 0..1_000 {
            now += random.below(SECOND);
            let key = random.below(50);
            let tats = map.entry(key).or_default();
            let taken = [
                limits[0].take(tats[0], now, 1),
                limits[1].take(tats[1], now, 1),
            ];
            let expected = match taken {
                [Ok(first), Ok(second)] => {
                    *tats = [first, second];
                    Outcome::Passed
                }
                [first, second] => Outcome::Over {
                    wait: first.err().max(second.err()).unwrap(),
                    violated: [first.is_err(), second.is_err(), false, false],
                },
            };
            assert_eq!(
                count(&mut table, &mut shared, key, now),
                expected,
                "step {step}, seed {seed}"
            );
        }
    }
}

/// A clock that was a year ahead has filled the shard and spent a quota. When it is set right nobody waits longer
/// than the window, though none of the requests that find this out is itself counted; and nobody is given a fresh
/// burst.
#[test]
fn a_clock_set_back_costs_one_window() {
    let ahead = NOW + 365 * 86_400 * SECOND;
    let mut shared = Shared::default();
    let mut table = table(&[limit(2, 60)], 1);
    for key in 1..=SLOTS as u64 {
        assert_eq!(count(&mut table, &mut shared, key, ahead), Outcome::Passed);
    }
    let rows = [
        // (seconds after the clock was set back, key, seconds to wait)
        (0, 99, Some(60)),
        (0, 1, Some(30)),
        (29, 1, Some(1)),
        (30, 1, None),
        (30, 1, Some(30)),
        (59, 99, Some(1)),
        (60, 99, None),
    ];
    for (row, (after, key, wait)) in rows.into_iter().enumerate() {
        let waited = match count(&mut table, &mut shared, key, NOW + after * SECOND) {
            Outcome::Passed => None,
            Outcome::Over { wait, .. } | Outcome::Full { wait } => Some(wait / SECOND),
            Outcome::Contended => panic!("row {row}"),
        };
        assert_eq!(waited, wait, "row {row}");
    }
}

#[test]
fn a_shard_that_no_table_wrote_is_an_error() {
    for bytes in [1, 15, 17, SLOTS * 16 + 16] {
        let mut shared = Shared::default();
        shared.set("t/0", &vec![0; bytes], 0);
        let counted =
            table(&[limit(2, 60)], 1).count(&mut Worker::alone(&mut shared), (1, 0), 1, NOW);
        assert!(counted.is_err(), "{bytes} bytes");
    }
}
