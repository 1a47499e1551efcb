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

use anyhow::{Context as _, bail};
use portcullis_cases::{Case, Cases, Place};
use portcullis_module::Description;

pub(crate) use report::Report;

use here::Here;
use report::{Row, Verdict};
use scene::{Certificate, Control};

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
        let is_named = |case: &&Case| self.named.is_none_or(|part| case.name.contains(part));
        let cases: Vec<&Case> = read.cases.iter().filter(is_named).collect();
        if let (true, Some(part)) = (cases.is_empty(), self.named) {
            bail!("{}: no case has {part:?} in its name", self.cases.display());
        }
        let control = self.control(&read.control)?;
        let certificate = Certificate::make()?;
        let mut here = Here::new(&control, &certificate)?;
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

    /// The module, if it is the one that the cases are about.
    fn control(&self, name: &str) -> anyhow::Result<Control> {
        let (module, cases) = (self.module.display(), self.cases.display());
        let bytes = std::fs::read(self.module).with_context(|| format!("cannot read {module}"))?;
        let description = Description::read(&bytes).with_context(|| module.to_string())?;
        if let Some(of) = description.as_ref().filter(|of| of.name != name) {
            bail!(
                "{cases} has the cases of {name:?}, and {module} is {:?}",
                of.name
            );
        }
        Ok(Control {
            name: name.to_owned(),
            module: self
                .module
                .canonicalize()
                .with_context(|| format!("cannot find {module}"))?,
            awaits_body: description.is_some_and(|it| it.awaits_body),
        })
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
