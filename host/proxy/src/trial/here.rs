//! Cases in this host, in process and without a socket.

use std::path::Path;
use std::sync::Arc;

use portcullis_cases::{Case, Place};
use portcullis_runtime::Runtime;

use super::exchange::{Miss, Tried, compare, outcome};
use super::question::{answers, questions};
use super::report::Verdict;
use super::scene::{self, Certificate, Control, Surroundings};
use crate::explain::{Answers, Explanation, Outcome, Question, Random, Stage, Time};
use crate::module_cache::DiskCache;
use crate::modules::Modules;
use crate::policy::{Policy, PolicyErrors};

/// This host, with the control's module in it.
pub(crate) struct Here<'t> {
    control: &'t Control,
    certificate: &'t Certificate,
    runtime: Arc<Runtime>,
    cache: DiskCache,
    /// Of the case before: the module is compiled and linked once.
    modules: Modules,
    random: Random,
}

impl<'t> Here<'t> {
    pub(crate) fn new(
        runtime: Arc<Runtime>,
        control: &'t Control,
        certificate: &'t Certificate,
    ) -> Self {
        Self {
            control,
            certificate,
            runtime,
            cache: DiskCache::of_user(),
            modules: Modules::default(),
            random: Random::Drawn,
        }
    }

    /// The same with random bytes that are the same in each run.
    pub(crate) fn repeating(self) -> Self {
        Self {
            random: Random::Repeated,
            ..self
        }
    }

    /// Runs one case, with a fresh plugin.
    pub(crate) fn run(&mut self, case: &Case) -> Verdict {
        if !case.places.contains(&Place::Host) {
            return Miss::NotRun(case.because.clone().unwrap_or_default()).into();
        }
        let verdict = self.on_stage(case, |stage, questions| {
            let mut log = Vec::new();
            for started in stage.started() {
                log.extend(started.said.log);
                log.extend(started.said.callouts);
            }
            compare(case, log, |index| match questions.get(index) {
                Some(question) => exchange(stage, question),
                None => Tried {
                    outcome: Err(Miss::NotRun("it has no such step".into())),
                    log: Vec::new(),
                },
            })
        });
        verdict.unwrap_or_else(Verdict::from)
    }

    /// Starts the plugin as a case has it, and gives what the case's steps ask.
    pub(crate) fn on_stage<R>(
        &mut self,
        case: &Case,
        run: impl FnOnce(&Stage<'_>, &[Question]) -> R,
    ) -> Result<R, Miss> {
        let answers = Answers::new(answers(case)?);
        let questions = questions(case)?;
        let nowhere = Surroundings::nowhere(case);
        let text = scene::policy(case, self.control, self.certificate, &nowhere).to_string();
        let policy = Policy::parse(Path::new("policy"), self.certificate.folder(), &text);
        let policy = policy.map_err(|PolicyErrors(problems)| Miss::refused(&problems))?;
        let earlier = std::mem::take(&mut self.modules);
        let (modules, problems) = Modules::load(&policy, &self.runtime, &self.cache, &earlier);
        if !problems.is_empty() {
            return Err(Miss::refused(&problems));
        }
        let stage = Stage::start(&policy, &modules, answers, Time::Passes, self.random);
        self.modules = modules;
        let stage = stage.map_err(|PolicyErrors(problems)| Miss::refused(&problems))?;
        Ok(run(&stage, &questions))
    }
}

fn exchange(stage: &Stage<'_>, question: &Question) -> Tried {
    let (explanation, traffic) = match stage.ask(question) {
        Ok(told) => told,
        Err(error) => {
            return Tried {
                outcome: Err(Miss::Failed(error.to_string())),
                log: Vec::new(),
            };
        }
    };
    let outcome = match &explanation.outcome {
        Outcome::Answer { .. } | Outcome::Reset { .. } => {
            Ok(outcome(traffic.answer, traffic.upstream))
        }
        Outcome::Held { waits_for, .. } => Err(Miss::Failed(format!(
            "the request is held, and nothing releases it: it waits for {waits_for}"
        ))),
        Outcome::NoRequest { reason } => Err(Miss::NotRun(format!(
            "only a socket shows what becomes of it: {reason}"
        ))),
    };
    Tried {
        outcome,
        log: said(explanation),
    }
}

/// What the plugin logged and called, in order.
fn said(explanation: Explanation) -> Vec<String> {
    let said = explanation.steps.into_iter().map(|step| step.said);
    said.flat_map(|said| said.log.into_iter().chain(said.callouts))
        .collect()
}
