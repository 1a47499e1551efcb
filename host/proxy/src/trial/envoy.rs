//! Cases in a stock Envoy, over sockets of loopback: one Envoy with the exports of all cases side by side, since starting one takes seconds and a
//! listener more takes none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use portcullis_cases::{Case, Place, Step};
use serde_json::Value;
use tokio::task::LocalSet;

use super::client;
use super::exchange::{Miss, Tried, compare, outcome};
use super::question::{answers, questions};
use super::report::Verdict;
use super::scene::{self, Certificate, Control, Listener, Surroundings};
use super::upstream::Upstream;
use crate::canary;
use crate::explain::{Answers, Prepared, Question, Said, UpstreamAnswer};
use crate::export::{self, Scope};
use crate::module_cache::DiskCache;
use crate::policy::{Policy, PolicyErrors};
use crate::serve;

/// Loading some dozens of modules takes seconds on a busy machine.
const READY_MAX: Duration = Duration::from_secs(120);
/// How often it is asked whether it is ready.
const READY_PERIOD: Duration = Duration::from_millis(50);

/// What every case came to, in their order.
pub(super) fn run(
    program: &Path,
    control: &Control,
    certificate: &Certificate,
    cases: &[&Case],
) -> anyhow::Result<Vec<Verdict>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let all = All {
        program,
        control,
        certificate,
    };
    LocalSet::new().block_on(&runtime, all.run(cases))
}

/// What all cases share.
struct All<'t> {
    program: &'t Path,
    control: &'t Control,
    certificate: &'t Certificate,
}

/// A case with the servers around it.
struct Scene {
    questions: Vec<Question>,
    around: Surroundings,
    upstream: Upstream,
    /// They serve as long as they stand here.
    _callouts: Vec<Upstream>,
}

impl All<'_> {
    async fn run(&self, cases: &[&Case]) -> anyhow::Result<Vec<Verdict>> {
        let mut scenes = Vec::new();
        let mut configuration = None;
        for (index, case) in cases.iter().enumerate() {
            let scene = match fits(case) {
                Ok(questions) => self.scene(index, case, questions).await?,
                Err(miss) => Err(miss),
            };
            let scene = scene.map(|(scene, exported)| {
                beside(&mut configuration, exported);
                scene
            });
            scenes.push(scene);
        }
        let Some(configuration) = configuration else {
            // None of them gets as far as Envoy.
            let missed = scenes.into_iter().filter_map(Result::err);
            return Ok(missed.map(Verdict::from).collect());
        };
        let path = self.certificate.folder().join("envoy.json");
        write(&path, configuration.to_string().as_bytes())?;
        let envoy = Envoy::start(self.program, &path, self.certificate.folder()).await?;
        let listeners = envoy.listeners().await?;
        let mut verdicts = Vec::new();
        for (case, scene) in cases.iter().zip(scenes) {
            verdicts.push(match scene {
                Ok(scene) => self.drive(case, &scene, &envoy, &listeners).await,
                Err(miss) => miss.into(),
            });
        }
        Ok(verdicts)
    }

    /// The servers of a case, and the export of its policy. The outer error is this machine's fault, the inner one the case's.
    async fn scene(
        &self,
        index: usize,
        case: &Case,
        questions: Vec<Question>,
    ) -> anyhow::Result<Result<(Scene, Value), Miss>> {
        let prepared = match answers(case) {
            Ok(prepared) => prepared,
            Err(miss) => return Ok(Err(miss)),
        };
        let upstream = Upstream::start("", Answers::default()).await?;
        let mut around = Surroundings {
            suffix: format!("-{index:03}"),
            upstream: upstream.address,
            callouts: BTreeMap::new(),
        };
        let mut callouts = Vec::new();
        for Prepared { cluster, .. } in &prepared {
            if !around.callouts.contains_key(cluster) {
                let own = prepared.iter().filter(|it| it.cluster == *cluster);
                let server = Upstream::start(cluster, Answers::new(own.cloned().collect())).await?;
                around.callouts.insert(cluster.clone(), server.address);
                callouts.push(server);
            }
        }
        let folder = self.certificate.folder();
        let text = scene::policy(case, self.control, self.certificate, &around).to_string();
        let tried = match Policy::parse(Path::new("policy"), folder, &text) {
            Ok(policy) => {
                let runtime = serve::runtime()?;
                let tried = canary::try_out(&policy, &runtime, &DiskCache::of_user());
                tried.map(|findings| (policy, findings))
            }
            Err(errors) => Err(errors),
        };
        let (policy, findings) = match tried {
            Ok(ready) => ready,
            Err(PolicyErrors(problems)) => return Ok(Err(Miss::refused(&problems))),
        };
        let out = folder.join(format!("case{}", around.suffix));
        let written = export::write(&policy, &findings, &out, None, Scope::Bootstrap)?;
        let exported = fs::read_to_string(&written.configuration)?;
        let exported = serde_saphyr::from_str(&exported)
            .with_context(|| written.configuration.display().to_string())?;
        let scene = Scene {
            questions,
            around,
            upstream,
            _callouts: callouts,
        };
        Ok(Ok((scene, exported)))
    }

    async fn drive(
        &self,
        case: &Case,
        scene: &Scene,
        envoy: &Envoy,
        listeners: &BTreeMap<String, SocketAddr>,
    ) -> Verdict {
        let filter = scene.around.named(&self.control.name);
        // `compare` asks one by one and cannot wait itself: what came is gathered before, as far as it is as expected.
        let mut tried = Vec::new();
        for (step, question) in case.steps.iter().zip(&scene.questions) {
            for _ in 0..step.repeat {
                let begun = envoy.log().len();
                let outcome = self.exchange(scene, question, listeners).await;
                let goes_on = matches!(&outcome, Ok(it) if step.expect.check(it).is_empty());
                let log = said(envoy.log().get(begun..).unwrap_or_default(), &filter);
                tried.push(Tried { outcome, log });
                if !goes_on {
                    break;
                }
            }
        }
        let mut tried = tried.into_iter();
        compare(case, Vec::new(), |_| {
            tried.next().unwrap_or_else(|| Tried {
                outcome: Err(Miss::NotRun("an exchange before it failed".into())),
                log: Vec::new(),
            })
        })
    }

    async fn exchange(
        &self,
        scene: &Scene,
        question: &Question,
        listeners: &BTreeMap<String, SocketAddr>,
    ) -> Result<portcullis_cases::Outcome, Miss> {
        let name = scene
            .around
            .named(question.listener.as_deref().unwrap_or(Listener::Tls.name()));
        let address = listeners
            .get(&name)
            .ok_or_else(|| Miss::Failed(format!("Envoy has no listener {name}")))?;
        scene.upstream.answer(always(question.upstream.clone()));
        let answer = client::ask(*address, question, self.certificate).await;
        let answer = answer.map_err(|error| Miss::Failed(format!("{error:#}")))?;
        Ok(outcome(Some(answer), scene.upstream.take_seen()))
    }
}

/// What a case asks, if Envoy and a client on loopback can do it.
fn fits(case: &Case) -> Result<Vec<Question>, Miss> {
    if !case.places.contains(&Place::Envoy) {
        return Err(Miss::NotRun(case.because.clone().unwrap_or_default()));
    }
    let leaves_properties = |step: &Step| !step.properties.is_empty();
    if case.steps.iter().any(leaves_properties) {
        return Err(Miss::NotRun(
            "no filter stands before the control in Envoy that could leave its `properties`".into(),
        ));
    }
    let questions = questions(case)?;
    let mut sources = questions.iter().map(|question| question.source.ip());
    match sources.find(|source| !(source.is_loopback() && source.is_ipv4())) {
        Some(source) => Err(Miss::NotRun(format!(
            "a client over sockets is 127.0.0.N, not {source}"
        ))),
        None => Ok(questions),
    }
}

fn always(answer: UpstreamAnswer) -> Answers {
    Answers::new(vec![Prepared {
        cluster: String::new(),
        path: None,
        answer: Said::Http(answer),
    }])
}

/// Two exports in one: the listeners and clusters of both.
fn beside(into: &mut Option<Value>, mut exported: Value) {
    let Some(into) = into else {
        into.replace(exported);
        return;
    };
    for list in ["/static_resources/listeners", "/static_resources/clusters"] {
        let all = into.pointer_mut(list).and_then(Value::as_array_mut);
        let more = exported.pointer_mut(list).and_then(Value::as_array_mut);
        if let (Some(all), Some(more)) = (all, more) {
            all.append(more);
        }
    }
}

/// What the plugin of a filter logged, and what Envoy itself warns of. Lines are
/// `[time][thread][level][logger] [file] wasm log FILTER FILTER: text`.
fn said(log: &str, filter: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in log.lines() {
        let level = line.split(['[', ']']).nth(5).unwrap_or_default();
        let text = line.rsplit_once(".cc:").map_or(line, |(_, text)| text);
        let text = text.split_once("] ").map_or(text, |(_, text)| text);
        match text.strip_prefix("wasm log ") {
            Some(text) if text.starts_with(filter) => {
                let text = text.split_once(": ").map_or(text, |(_, text)| text);
                lines.push(format!("{level}: {text}"));
            }
            Some(_) => {}
            None => lines.push(format!("{level}: (Envoy) {text}")),
        }
    }
    lines
}

/// A running Envoy; killed when it goes.
struct Envoy {
    process: Child,
    log: PathBuf,
    admin: SocketAddr,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // One that has ended already is no trouble.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Envoy {
    async fn start(program: &Path, configuration: &Path, folder: &Path) -> anyhow::Result<Self> {
        let (log, admin) = (folder.join("envoy.log"), folder.join("admin"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let process = Command::new(program)
            .arg("--config-path")
            .arg(configuration)
            .args([
                "--config-yaml",
                "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}",
            ])
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--concurrency", "1", "--log-level", "warning"])
            .args(["--component-log-level", "wasm:info"])
            .arg("--disable-hot-restart")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn();
        let process = process.with_context(|| {
            format!(
                "cannot run {} (--envoy names the program, such as the one of https://www.envoyproxy.io/docs/envoy/latest/start/install)",
                program.display()
            )
        })?;
        let mut envoy = Self {
            process,
            log,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let begun = Instant::now();
        loop {
            if let Some(status) = envoy.process.try_wait()? {
                bail!("Envoy ended ({status}):\n{}", envoy.last_words());
            }
            if let Ok(text) = fs::read_to_string(&admin)
                && let Ok(address) = text.trim().parse()
            {
                envoy.admin = address;
                let ready = client::page(address, "/ready").await;
                if ready.is_ok_and(|answer| answer.status() == 200) {
                    return Ok(envoy);
                }
            }
            if begun.elapsed() > READY_MAX {
                bail!(
                    "Envoy is not ready after {} s:\n{}",
                    READY_MAX.as_secs(),
                    envoy.last_words()
                );
            }
            tokio::time::sleep(READY_PERIOD).await;
        }
    }

    /// Every listener's address, by name.
    async fn listeners(&self) -> anyhow::Result<BTreeMap<String, SocketAddr>> {
        let answer = client::page(self.admin, "/listeners?format=json").await?;
        let told: Value = serde_json::from_slice(answer.body())?;
        let statuses = told.get("listener_statuses").and_then(Value::as_array);
        let mut listeners = BTreeMap::new();
        for status in statuses.into_iter().flatten() {
            let at = |pointer: &str| {
                let found = status.pointer(pointer);
                found.with_context(|| format!("Envoy's listeners have no {pointer}"))
            };
            let name = at("/name")?.as_str().unwrap_or_default();
            let ip = at("/local_address/socket_address/address")?.as_str();
            let port = at("/local_address/socket_address/port_value")?.as_u64();
            let address = SocketAddr::new(
                ip.unwrap_or_default().parse()?,
                u16::try_from(port.unwrap_or_default())?,
            );
            listeners.insert(name.to_owned(), address);
        }
        Ok(listeners)
    }

    fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(20);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_lines_are_told_from_others() {
        let log = "\
[2026-01-01 00:00:00.000][7][info][wasm] [source/extensions/common/wasm/context.cc:1198] wasm log gate-001 gate-001: refused: media_type
[2026-01-01 00:00:00.000][7][info][wasm] [source/extensions/common/wasm/context.cc:1198] wasm log gate-002 gate-002: of another
[2026-01-01 00:00:00.000][7][critical][wasm] [source/extensions/common/wasm/wasm.cc:10] Plugin crashed
";
        assert_eq!(
            said(log, "gate-001"),
            [
                "info: refused: media_type",
                "critical: (Envoy) Plugin crashed"
            ]
        );
    }
}
