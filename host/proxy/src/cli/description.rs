//! What a control's module says of itself, as lines for people and as JSON.

use std::fmt::Write as _;

use portcullis_module::Description;
use serde_json::{Value, json};

/// Where a line's value begins.
const KEY_WIDTH: usize = 14;

/// Letters of a key's meaning; the rest is in the JSON form.
const MEANING_MAX: usize = 90;

/// `key value` lines.
#[derive(Debug, Default)]
pub(super) struct Lines(String);

impl Lines {
    /// One line; a value of several lines is set below itself.
    pub(super) fn line(&mut self, key: &str, value: &str) {
        let between = format!("\n{:width$}", "", width = KEY_WIDTH + 1);
        let value = value.replace('\n', &between);
        let _ = writeln!(self.0, "{key:<KEY_WIDTH$} {value}");
    }

    /// A list, one a line; nothing if it is empty.
    pub(super) fn list(&mut self, key: &str, values: &[impl AsRef<str>]) {
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        if !values.is_empty() {
            self.line(key, &values.join("\n"));
        }
    }

    /// What the module says.
    pub(super) fn description(&mut self, description: &Description) {
        self.line("name", &description.name);
        self.line("version", &description.version);
        if !description.summary.is_empty() {
            self.line("summary", &description.summary);
        }
        let authenticates = match description.authenticates {
            true => "yes: `failure_policy: open` is refused for it",
            false => "no",
        };
        self.line("authenticates", authenticates);
        self.line("phases", &phases(description).join(", "));
        if let Some(schema) = schema(description) {
            self.line("configuration", &configuration(&schema));
        }
        if !description.capabilities.is_empty() {
            // As a policy's `allow.capabilities` takes it.
            let names = description.capabilities.join(",\n ");
            self.line("capabilities", &format!("[{names}]"));
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

/// The same as JSON.
pub(super) fn as_json(description: &Description) -> Value {
    json!({
        "name": description.name,
        "version": description.version,
        "summary": description.summary,
        "authenticates": description.authenticates,
        "phases": phases(description),
        "callbacks": description.callbacks,
        "capabilities": description.capabilities,
        "schema": schema(description),
    })
}

/// The callbacks as an author calls them.
fn phases(description: &Description) -> Vec<&str> {
    let callbacks = description.callbacks.iter();
    callbacks
        .map(|name| name.strip_prefix("proxy_on_").unwrap_or(name))
        .collect()
}

fn schema(description: &Description) -> Option<Value> {
    serde_json::from_str(description.schema.as_ref()?).ok()
}

/// The schema's keys, one a line: what they take, their default, their meaning.
fn configuration(schema: &Value) -> String {
    let required = schema.get("required").and_then(Value::as_array);
    let required = |key: &str| required.is_some_and(|keys| keys.iter().any(|known| known == key));
    let Some(keys) = schema.get("properties").and_then(Value::as_object) else {
        return "see --format json".into();
    };
    let mut lines = Vec::new();
    for (key, value) in keys {
        let mut line = format!("{key}: {}", kind(value));
        match value.get("default") {
            Some(default) => {
                let _ = write!(line, ", default {default}");
            }
            None if required(key) => line.push_str(", required"),
            None => {}
        }
        let meaning = value.get("description").and_then(Value::as_str);
        if let Some(meaning) = meaning.and_then(|meaning| meaning.lines().next()) {
            let short: String = meaning.chars().take(MEANING_MAX).collect();
            let more = if short.len() < meaning.len() {
                "…"
            } else {
                ""
            };
            let _ = write!(line, "; {short}{more}");
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return "none".into();
    }
    lines.join("\n")
}

/// What a value is, in one word or two.
fn kind(value: &Value) -> String {
    match value.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(Value::Array(kinds)) => {
            let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
            kinds.join(" or ")
        }
        _ => match value.get("$ref").and_then(Value::as_str) {
            Some(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
            None => "see --format json".into(),
        },
    }
}
