//! What a control's cases cost on its finished module: what `portcullis bench` does.
//!
//! Each exchange of a case is asked again and again of one plugin, in the runtime's own chain and without a socket ([`crate::explain`]), as
//! `portcullis test` asks it once; before the second and those after it, a fresh plugin is asked what the case asks before them. Measured is the time
//! inside of the plugin's callbacks, hostcalls included, less what the clock itself takes: what a request pays for the plugin, and nothing that it pays
//! anyway. Between two exchanges other work of this host runs, as in a proxy.
//!
//! Wasm operators, hostcalls and allocations are counted in a second pass, by an engine that counts operators, with random bytes that repeat: the same
//! on every machine, and at every hour.

mod baseline;
mod picture;
mod recording;
mod report;

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use portcullis_cases::{Case, Cases, Place};
use portcullis_runtime::RuntimeOptions;

pub(crate) use baseline::{Baseline, Comparison};
pub(crate) use picture::html;
pub(crate) use report::{Budget, Measurement};

use crate::explain::{Outcome, Question, Stage};
use crate::serve;
use crate::trial::{Certificate, Control, Here, Miss, Verdict};
use recording::{Recording, What, clock_ns};
use report::{NotMeasured, Row};

/// Exchanges before the first that is measured: caches are warm then, and what a plugin fetches is there.
const WARM_UP: u32 = 200;
/// Exchanges whose operators are counted: random bytes differ among them.
const COUNTED: u32 = 50;
/// A step that takes longer ends early, what stands before it and the warm-up included.
const STEP_MAX: Duration = Duration::from_secs(10);
/// And so long at most it is warmed up.
const WARM_UP_MAX: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Debug)]
pub(crate) struct Measuring<'m> {
    /// The finished module.
    pub(crate) module: &'m Path,
    /// `cases.yaml`.
    pub(crate) cases: &'m Path,
    /// Only cases with this in their names.
    pub(crate) named: Option<&'m str>,
    /// How often each is asked.
    pub(crate) exchanges: u32,
}

/// How a plugin's exchanges went.
struct Run {
    recording: Rc<Recording>,
    /// Of each answer; 0 where the exchange was reset.
    status: u16,
    exchanges: u32,
    memory_bytes: usize,
    note: Option<String>,
}

impl Measuring<'_> {
    /// Measures.
    ///
    /// # Errors
    ///
    /// The module or the cases cannot be read, or do not belong together. A case that cannot be measured is no error.
    pub(crate) fn run(&self) -> anyhow::Result<Measurement> {
        let read = Cases::read(self.cases)?;
        let named = read.named(self.named);
        let mut chosen = named.with_context(|| self.cases.display().to_string())?;
        if chosen.iter().any(|case| case.benchmark) {
            chosen.retain(|case| case.benchmark);
        }
        let control = Control::of(self.module, self.cases, &read.control)?;
        let certificate = Certificate::make()?;
        let mut counting = RuntimeOptions::default();
        counting.on_demand = true;
        counting.count_operators = true;
        let counting = serve::ticking(counting)?;
        let mut timed = Here::new(serve::runtime()?, &control, &certificate);
        let mut counted = Here::new(counting, &control, &certificate).repeating();
        let clock_ns = clock_ns();
        let (mut measured, mut not_measured) = (Vec::new(), Vec::new());
        for case in chosen {
            if let Err(reason) = holds(&mut timed, case) {
                let case = case.name.clone();
                not_measured.push(NotMeasured { case, reason });
                continue;
            }
            for step in 0..case.steps.len() {
                let name = named_step(case, step);
                match self.row(&name, (case, step), (&mut timed, &mut counted), clock_ns) {
                    Ok(row) => measured.push(row),
                    Err(reason) => not_measured.push(NotMeasured { case: name, reason }),
                }
            }
        }
        Ok(Measurement {
            control: read.control,
            module: self.module.display().to_string(),
            cases: self.cases.display().to_string(),
            clock_ns,
            measured,
            not_measured,
        })
    }

    fn row(
        &self,
        name: &str,
        step: (&Case, usize),
        (timed, counted): (&mut Here<'_>, &mut Here<'_>),
        clock_ns: u64,
    ) -> Result<Row, String> {
        let run = asked(timed, step, What::Times, self.exchanges)?;
        let count = asked(counted, step, What::Counts, COUNTED.min(self.exchanges))?;
        Ok(Row::new(name, &run, &count.recording, clock_ns))
    }
}

/// A case's name for its first step, and one told from it for each after.
fn named_step(case: &Case, step: usize) -> String {
    match step {
        0 => case.name.clone(),
        later => format!("{}, step {}", case.name, later + 1),
    }
}

fn holds(here: &mut Here<'_>, case: &Case) -> Result<(), String> {
    if !case.places.contains(&Place::Host) {
        return Err(case.because.clone().unwrap_or_default());
    }
    match here.run(case) {
        Verdict::Holds => Ok(()),
        Verdict::NotRun { reason } => Err(reason),
        Verdict::Fails(_) => Err("it does not hold: see `portcullis test`".into()),
    }
}

/// Asks a step of a case so often, after those before it.
fn asked(
    here: &mut Here<'_>,
    (case, step): (&Case, usize),
    what: What,
    exchanges: u32,
) -> Result<Run, String> {
    let run = here.on_stage(case, |stage, questions| {
        let began = Instant::now();
        for (earlier, question) in case.steps.iter().zip(questions).take(step) {
            for _ in 0..earlier.repeat {
                answered(stage, question)?;
                if began.elapsed() > STEP_MAX {
                    return Err("the steps before it take longer than 10 s".into());
                }
            }
        }
        match (case.steps.get(step), questions.get(step)) {
            (Some(step), Some(question)) => {
                let due = step.expect.status;
                repeated(stage, (question, due), what, exchanges, began)
            }
            _ => Err("it has no such step".into()),
        }
    });
    run.unwrap_or_else(|miss| match miss {
        Miss::Failed(reason) | Miss::NotRun(reason) => Err(reason),
    })
}

fn repeated(
    stage: &Stage<'_>,
    (question, due): (&Question, Option<u16>),
    what: What,
    exchanges: u32,
    begun: Instant,
) -> Result<Run, String> {
    let status = answered(stage, question)?;
    if let Some(due) = due.filter(|due| *due != status) {
        return Err(format!("it answers {status}, and the case expects {due}"));
    }
    let mut warmed_up = 1;
    while warmed_up < WARM_UP.min(exchanges) && begun.elapsed() < WARM_UP_MAX {
        let now = answered(stage, question)?;
        if now != status {
            return Err(format!(
                "its answer {status} becomes {now} after {warmed_up} exchanges: too few to measure"
            ));
        }
        warmed_up += 1;
    }
    let recording = Rc::new(Recording::new(what));
    if !stage.record(&recording) {
        return Err("no VM of it stands".into());
    }
    let (mut done, mut note) = (0, None);
    while done < exchanges {
        let now = answered(stage, question)?;
        if now != status {
            recording.forget_exchange();
            note = Some(format!(
                "its answer became {now} after {} exchanges: only those before are measured",
                done + warmed_up
            ));
            break;
        }
        recording.end_exchange();
        done += 1;
        if begun.elapsed() > STEP_MAX {
            note = Some(format!(
                "ended after {} s with {done} exchanges",
                STEP_MAX.as_secs()
            ));
            break;
        }
    }
    recording.close();
    if done == 0 {
        return Err(note.unwrap_or_else(|| "no exchange was asked for".into()));
    }
    Ok(Run {
        recording,
        status,
        exchanges: done,
        memory_bytes: stage.memory_bytes(),
        note,
    })
}

/// Asks once: the status of the answer, 0 where the exchange is reset.
fn answered(stage: &Stage<'_>, question: &Question) -> Result<u16, String> {
    let (explanation, traffic) = stage.ask(question).map_err(|error| error.to_string())?;
    // What was said is for those who look at one exchange.
    drop(stage.started());
    match explanation.outcome {
        Outcome::Answer { .. } | Outcome::Reset { .. } => {
            Ok(traffic.answer.map_or(0, |answer| answer.status().as_u16()))
        }
        Outcome::Held { waits_for, .. } => Err(format!(
            "asked again it is held, and nothing releases it: it waits for {waits_for}"
        )),
        Outcome::NoRequest { reason } => Err(reason),
    }
}
