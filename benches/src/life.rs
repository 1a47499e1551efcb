//! How long something takes, in visits that are short enough to take turns: each gives the median of its batches.

use crate::bed::pass;
use crate::statistics::median;
use anyhow::{Context, Result, ensure};
use portcullis::fields::HttpFields;
use portcullis_runtime::{Chain, Exchange};
use std::time::{Duration, Instant};

/// Exchanges that are made before they are passed, and timed together: see [`crate::bed::WARM`].
const BATCH: u32 = 32;

/// What one exchange takes on its way through a chain, in µs, less what it takes where there is no filter: the same number of exchanges
/// goes through an empty chain in turn.
///
/// # Errors
/// When one is answered with anything but 200: a refusal costs something else.
pub fn life_us(
    chain: &Chain,
    lasting: Duration,
    mut exchange: impl FnMut() -> (Exchange, HttpFields),
) -> Result<f64> {
    let nothing = Chain::new(Vec::new());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while with.is_empty() || begun.elapsed() < lasting {
        for (chain, taken) in [(chain, &mut with), (&nothing, &mut without)] {
            let batch: Vec<_> = (0..BATCH).map(|_| exchange()).collect();
            let start = Instant::now();
            let refused = batch
                .into_iter()
                .map(|exchange| pass(chain, exchange))
                .filter(|status| *status != 200)
                .last();
            taken.push(micros(start.elapsed()) / f64::from(BATCH));
            ensure!(
                refused.is_none(),
                "an exchange was answered with {refused:?}"
            );
        }
    }
    let [with, without] = [with, without].map(|taken| median(&taken));
    Ok(with.context("nothing measured")? - without.context("nothing measured")?)
}

/// What one call of `work` takes, in µs, made `batch` times in a row; what `prepare` does before each row is not counted.
pub fn batches_us<T>(
    lasting: Duration,
    batch: u32,
    mut prepare: impl FnMut() -> T,
    mut work: impl FnMut(&mut T),
) -> Result<f64> {
    let mut taken = Vec::new();
    let begun = Instant::now();
    while taken.is_empty() || begun.elapsed() < lasting {
        let mut prepared: Vec<T> = (0..batch).map(|_| prepare()).collect();
        let start = Instant::now();
        prepared.iter_mut().for_each(&mut work);
        taken.push(micros(start.elapsed()) / f64::from(batch));
    }
    median(&taken).context("nothing measured")
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
