//! What an exchange costs each built-in control, alone and as the whole policy module, in Wasm operators and in hostcalls, as `portcullis bench`
//! counts them: against the figures kept in the repository. They are the same on every machine, so what makes a guest dearer fails here, and what
//! makes it cheaper is written down, lest it be lost again unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::build_folder::repository;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control_crate::told;
use crate::served;

/// Where the figures are kept.
const KEPT: &str = "tests/operators.json";
/// What writes them anew.
const RENEW: &str =
    "PORTCULLIS_WRITE_DOCS=1 cargo test --release --workspace --test portcullis operators";
/// How far a figure may be from what is kept, either way, in percent.
const TOLERANCE_PERCENT: f64 = 3.0;
/// The controls whose cases marked for the benchmark are counted.
const CONTROLS: [&str; 4] = ["security-headers", "tls-policy", "jwt-auth", "rate-limit"];

/// What one exchange of a case takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    /// Wasm operators, rounded.
    operators: f64,
    /// By name.
    hostcalls: BTreeMap<String, f64>,
    /// Calls of the guest for memory, to hand it a value: each is an entry into it.
    allocations: f64,
}

/// By control, then by case.
type Figures = BTreeMap<String, BTreeMap<String, Counts>>;

impl Counts {
    /// Of a row of `portcullis bench --format json`.
    fn of(row: &Value) -> Result<Self> {
        let number = |value: &Value, name: &str| {
            let found = value.get(name).and_then(Value::as_f64);
            found.with_context(|| format!("no {name} in {value:#}"))
        };
        let calls = row.get("hostcalls").and_then(Value::as_array);
        let calls = calls.with_context(|| format!("no hostcalls in {row:#}"))?;
        let hostcalls = calls.iter().map(|call| {
            let name = call.get("hostcall").and_then(Value::as_str);
            Ok((
                name.context("a hostcall without a name")?.to_owned(),
                number(call, "calls")?,
            ))
        });
        Ok(Self {
            operators: number(row, "operators")?.round(),
            hostcalls: hostcalls.collect::<Result<_>>()?,
            allocations: number(row, "allocations")?,
        })
    }

    /// Every figure by its name.
    fn figures(&self) -> BTreeMap<&str, f64> {
        let calls = self
            .hostcalls
            .iter()
            .map(|(name, calls)| (name.as_str(), *calls));
        let rest = [
            ("operators", self.operators),
            ("allocations", self.allocations),
        ];
        calls.chain(rest).collect()
    }

    /// What is further from `kept` than is let pass, a line each.
    fn differences(&self, kept: &Self) -> Vec<String> {
        let (now, kept) = (self.figures(), kept.figures());
        let names: BTreeSet<&str> = now.keys().chain(kept.keys()).copied().collect();
        let mut lines = Vec::new();
        for name in names {
            let of = |figures: &BTreeMap<&str, f64>| figures.get(name).copied().unwrap_or_default();
            let (now, kept) = (of(&now), of(&kept));
            if (now - kept).abs() <= kept * TOLERANCE_PERCENT / 100.0 {
                continue;
            }
            let percent = (now / kept - 1.0).abs() * 100.0;
            let way = if now > kept { "more" } else { "less" };
            lines.push(match kept > 0.0 {
                true => format!("{name}: {now}, {percent:.1} % {way} than the {kept} kept"),
                false => format!("{name}: {now}, and none kept"),
            });
        }
        lines
    }
}

/// What is not as it is kept, as a text that says what to do; nothing where all is.
fn judged(now: &Figures, kept: &Figures) -> Option<String> {
    let mut lines = String::new();
    let cases = |figures: &Figures| -> BTreeSet<(String, String)> {
        let cases = figures
            .iter()
            .flat_map(|(control, cases)| cases.keys().map(|case| (control.clone(), case.clone())));
        cases.collect()
    };
    for (control, case) in cases(now).union(&cases(kept)) {
        let of = |figures: &Figures| figures.get(control)?.get(case).cloned();
        let differences = match (of(now), of(kept)) {
            (Some(now), Some(kept)) => now.differences(&kept),
            (Some(_), None) => vec!["nothing is kept of it".to_owned()],
            (None, _) => vec!["it is kept, and no longer there".to_owned()],
        };
        for difference in differences {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "  {control}, {case}: {difference}");
        }
    }
    (!lines.is_empty()).then(|| {
        format!(
            "an exchange does not cost what {KEPT} keeps (within {TOLERANCE_PERCENT} %):\n{lines}if it costs more, find out why first \
             (docs/performance.md); what is meant to stay is written by\n  {RENEW}"
        )
    })
}

/// The cases of a control that are marked for the benchmark, with the tokens that they ask for: `portcullis bench` can sign none.
fn marked(control: &str) -> Result<Value> {
    let path = repository()
        .join("plugins")
        .join(control)
        .join("cases.yaml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let options = serde_saphyr::options! { budget: None };
    let mut read: Value = serde_saphyr::from_str_with_options(&text, options)?;
    let cases = read.get_mut("cases").and_then(Value::as_array_mut);
    let cases = cases.with_context(|| format!("no cases in {}", path.display()))?;
    cases.retain(|case| case.get("benchmark") == Some(&Value::Bool(true)));
    ensure!(
        !cases.is_empty(),
        "no case of {control} is marked `benchmark: true`"
    );
    cases.iter_mut().try_for_each(with_tokens)?;
    Ok(read)
}

/// Puts tokens where a value asks for one.
fn with_tokens(value: &mut Value) -> Result<()> {
    let asked = value.as_object().filter(|members| members.len() == 1);
    if let Some(argument) = asked.and_then(|members| members.get("jwt")) {
        *value = token(argument)?.into();
        return Ok(());
    }
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(with_tokens),
        Value::Object(members) => members.values_mut().try_for_each(with_tokens),
        _ => Ok(()),
    }
}

fn token(argument: &Value) -> Result<String> {
    let made = jwt_auth::testing::make("jwt", argument, SystemTime::now());
    Ok(String::from_utf8(made.map_err(anyhow::Error::msg)?)?)
}

/// The four controls in one module: a good token, which is in the cache after the first exchange, and none.
fn policy_cases() -> Result<Value> {
    let key = jwt_auth::testing::public_jwk("rsa-1").map_err(anyhow::Error::msg)?;
    let provider =
        json!({"issuer": "https://issuer.test", "audiences": ["api"], "jwks": {"keys": [key]}});
    let limit = json!({"name": "wide", "requests": 1_000_000, "per": "1s"});
    let controls = json!({"controls": [
        {"control": "security-headers"},
        {"control": "tls-policy"},
        {"control": "jwt-auth", "configuration": {"providers": [provider]}},
        {"control": "rate-limit", "configuration": {"limits": [limit]}},
    ]});
    let bearer = format!("Bearer {}", token(&json!({}))?);
    Ok(json!({"control": "policy", "cases": [
        {
            "name": "the four, with a token in the cache",
            "configuration": controls,
            "request": {"headers": [["authorization", bearer]]},
            "expect": {"status": 200},
        },
        {"name": "the four, without a token", "configuration": controls, "expect": {"status": 401}},
    ]}))
}

/// What `portcullis bench` counts of these cases on the module in `folder`.
fn counted(folder: &Path, cases: &Value) -> Result<BTreeMap<String, Counts>> {
    let control = cases.get("control").and_then(Value::as_str);
    let control = control.context("cases without a control")?;
    let file = folder.join(format!("{control}.json"));
    fs::write(&file, cases.to_string())?;
    let mut command = served::command()?;
    command
        .args([
            "bench",
            "--exchanges",
            "200",
            "--format",
            "json",
            "--module",
        ])
        .arg(folder.join(format!("{control}.wasm")))
        .arg("--cases")
        .arg(&file);
    let told: Value = serde_json::from_str(&told(&mut command)?)?;
    let not_measured = told.get("not_measured").and_then(Value::as_array);
    ensure!(
        not_measured.is_some_and(Vec::is_empty),
        "{control}: {not_measured:?}"
    );
    let rows = told.get("measured").and_then(Value::as_array);
    let rows = rows.with_context(|| format!("nothing measured of {control}"))?;
    let counts = rows.iter().map(|row| {
        let case = row.get("case").and_then(Value::as_str);
        ensure!(
            row.get("note") == Some(&Value::Null),
            "{case:?}: {:?}",
            row.get("note")
        );
        Ok((
            case.context("a row without a case")?.to_owned(),
            Counts::of(row)?,
        ))
    });
    counts.collect()
}

/// Compares with what is kept, or writes it where `PORTCULLIS_WRITE_DOCS` says so.
#[test]
fn an_exchange_costs_what_is_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    told(
        served::command()?
            .args(["plugins", "write"])
            .arg(folder.path()),
    )?;
    let mut now = Figures::new();
    for control in CONTROLS {
        now.insert(control.into(), counted(folder.path(), &marked(control)?)?);
    }
    now.insert("policy".into(), counted(folder.path(), &policy_cases()?)?);
    let path = repository().join(KEPT);
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        return Ok(fs::write(
            &path,
            serde_json::to_string_pretty(&now)? + "\n",
        )?);
    }
    let kept = fs::read(&path).with_context(|| format!("cannot read {KEPT}: {RENEW} writes it"))?;
    let kept: Figures = serde_json::from_slice(&kept).context(KEPT)?;
    match judged(&now, &kept) {
        Some(reason) => bail!(reason),
        None => Ok(()),
    }
}

#[test]
fn what_costs_more_or_less_is_told_and_by_how_much() -> Result<()> {
    let counts = |operators: f64, clock: f64| Counts {
        operators,
        hostcalls: BTreeMap::from([("proxy_get_property".to_owned(), clock)]),
        allocations: 1.0,
    };
    let figures = |counts: Counts| Figures::from([("c".into(), [("a".into(), counts)].into())]);
    let kept = figures(counts(1000.0, 1.0));
    for (now, said) in [
        (counts(1000.0, 1.0), None),
        (counts(1030.0, 1.0), None),
        (counts(970.0, 1.0), None),
        (
            counts(1031.0, 1.0),
            Some("c, a: operators: 1031, 3.1 % more than the 1000 kept"),
        ),
        (
            counts(500.0, 1.0),
            Some("c, a: operators: 500, 50.0 % less than the 1000 kept"),
        ),
        (
            counts(1000.0, 2.0),
            Some("c, a: proxy_get_property: 2, 100.0 % more than the 1 kept"),
        ),
    ] {
        let told = judged(&figures(now.clone()), &kept);
        match said {
            None => ensure!(told.is_none(), "{now:?}: {told:?}"),
            Some(said) => {
                let told = told.with_context(|| format!("{now:?} passes"))?;
                ensure!(told.contains(said) && told.contains(RENEW), "{told}");
            }
        }
    }
    let other = Figures::from([("d".into(), [("b".into(), counts(1.0, 1.0))].into())]);
    let told = judged(&other, &kept).context("other cases pass")?;
    ensure!(told.contains("d, b: nothing is kept of it"), "{told}");
    ensure!(
        told.contains("c, a: it is kept, and no longer there"),
        "{told}"
    );
    Ok(())
}
