//! A control's cases, run on its finished module: what `portcullis test` does.
//!
//! In this host each case has a plugin of its own, in the runtime's own chain and with the code that `serve` runs around it, but without a socket
//! ([`crate::explain`]): the case says what clients send and what upstreams and clusters answer. Time is real, and waited for only while a request is
//! held. In Envoy the same goes over sockets of loopback. What a place cannot show is listed as not run.

mod client;
mod envoy;
mod exchange;
mod here;
mod question;
mod report;
mod scene;
mod upstream;

use std::path::Path;

use anyhow::Context as _;
use portcullis_cases::{Case, Cases, Place};

pub(crate) use exchange::Miss;
pub(crate) use here::Here;
pub(crate) use report::{Report, Verdict};
pub(crate) use scene::{Certificate, Control};

use report::Row;

use crate::serve;

/// What to run.
#[derive(Debug)]
pub(crate) struct Trial<'t> {
    /// The finished module.
    pub(crate) module: &'t Path,
    /// `cases.yaml`.
    pub(crate) cases: &'t Path,
    /// Only cases with this in their names.
    pub(crate) named: Option<&'t str>,
    /// The program, if they are to run in Envoy, too.
    pub(crate) envoy: Option<&'t Path>,
}

impl Trial<'_> {
    /// Runs the cases.
    ///
    /// # Errors
    ///
    /// The module or the cases cannot be read, or do not belong together, or Envoy does not start. A case that does not hold is no error.
    pub(crate) fn run(&self) -> anyhow::Result<Report> {
        let read = Cases::read(self.cases)?;
        let named = read.named(self.named);
        let cases = named.with_context(|| self.cases.display().to_string())?;
        let control = Control::of(self.module, self.cases, &read.control)?;
        let certificate = Certificate::make()?;
        let mut here = Here::new(serve::runtime()?, &control, &certificate);
        let mut rows: Vec<Row> = cases
            .iter()
            .map(|case| row(case, Place::Host, here.run(case)))
            .collect();
        if let Some(program) = self.envoy {
            let verdicts = envoy::run(program, &control, &certificate, &cases)?;
            let pairs = cases.iter().zip(verdicts);
            rows.extend(pairs.map(|(case, verdict)| row(case, Place::Envoy, verdict)));
        }
        Ok(Report::new(read.control, self.module, self.cases, rows))
    }
}

fn row(case: &Case, place: Place, verdict: Verdict) -> Row {
    Row {
        case: case.name.clone(),
        place: match place {
            Place::Native => "native",
            Place::Host => "host",
            Place::Envoy => "envoy",
        },
        verdict,
    }
}
