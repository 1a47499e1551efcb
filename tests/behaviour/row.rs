//! One row of the behaviour table: a request, scripts for the probes, and where we are to answer otherwise than Envoy.
//!
//! Rows are data: `rows/*.yaml`, a chapter a file, in the order of their names. Rows run in that order, since some leave something
//! behind. The language of the scripts is told in `tests/guests/probe/script.rs`.

use std::fs;

use anyhow::{Context as _, Result};
use portcullis_tests::build_folder::repository;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chapter {
    #[serde(rename = "chapter")]
    pub(crate) title: String,
    /// Its file's name.
    #[serde(skip)]
    pub(crate) file: String,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// What the first probe does in its plugin's own callbacks; such a row sends no request.
    #[serde(default)]
    pub(crate) start: Option<String>,
    #[serde(default)]
    pub(crate) request: Ask,
    /// The probe that every request passes.
    #[serde(default)]
    pub(crate) probe: Option<String>,
    /// The one behind it, on a route of their own.
    #[serde(default)]
    pub(crate) second: Option<String>,
    /// One before the first that may hold headers alone (`allow_on_headers_stop_iteration`), on a route of their own.
    #[serde(default)]
    pub(crate) alone: Option<String>,
    /// One that may break its VM, in place of the first. It reports nothing.
    #[serde(default)]
    pub(crate) fragile: Option<String>,
    /// Whether the probes' reports count, or only what client and upstream see.
    #[serde(default = "yes")]
    pub(crate) is_reported: bool,
    /// The report is whole once it holds this.
    #[serde(default)]
    pub(crate) until: String,
    #[serde(default)]
    pub(crate) deviates: Option<Deviation>,
}

/// How the request goes out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ask {
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<String>,
    pub(crate) http2: bool,
    /// How long the client waits, where an answer is not to be expected of one of the hosts.
    pub(crate) patience_ms: Option<u64>,
}

/// What a row does to all of an Envoy, which then gets one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Harm {
    /// The process ends.
    Dies,
    /// The worker answers nobody any more.
    Hangs,
}

/// Where we are to differ from Envoy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deviation {
    pub(crate) because: String,
    #[serde(default)]
    pub(crate) envoy: Option<Harm>,
    /// All that is to be seen here, a line each.
    pub(crate) portcullis: String,
}

fn yes() -> bool {
    true
}

impl Row {
    /// By plugin.
    pub(crate) fn scripts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("alone", &self.alone),
            ("probe", &self.probe),
            ("second", &self.second),
            ("fragile", &self.fragile),
        ]
        .into_iter()
        .filter_map(|(plugin, script)| Some((plugin, script.as_deref()?)))
    }

    /// What it does to all of an Envoy.
    pub(crate) fn harm(&self) -> Option<Harm> {
        self.deviates.as_ref()?.envoy
    }

    /// The plugins whose reports count.
    pub(crate) fn reporters(&self) -> Vec<&'static str> {
        if self.start.is_some() {
            return vec!["probe"];
        }
        let reports = |plugin: &&str| self.is_reported && *plugin != "fragile";
        self.scripts()
            .map(|(plugin, _)| plugin)
            .filter(reports)
            .collect()
    }

    pub(crate) fn path(&self) -> &str {
        match (&self.request.path, &self.second, &self.fragile, &self.alone) {
            (Some(path), ..) => path,
            (None, Some(_), ..) => "/two",
            (None, None, Some(_), _) => "/fragile",
            (None, None, None, Some(_)) => "/alone",
            (None, None, None, None) => "/",
        }
    }
}

/// Where the chapters stand, from the root of the repository.
pub(crate) const FOLDER: &str = "tests/behaviour/rows";

/// All chapters.
pub(crate) fn chapters() -> Result<Vec<Chapter>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(repository().join(FOLDER))? {
        files.push(entry?.path());
    }
    files.sort();
    files
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path)?;
            let chapter: Chapter =
                serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
            let file = path.file_name().unwrap_or_default();
            Ok(Chapter {
                file: file.to_string_lossy().into_owned(),
                ..chapter
            })
        })
        .collect()
}
