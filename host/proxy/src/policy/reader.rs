//! Reading the tree: every access either gives a value of the right type or notes a problem, so that one pass finds them all.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::limits::ITEMS_MAX;
use super::node::{Node, Value};
use super::place::{Place, Problem};
use super::scalar;

/// What is known while a policy is read: its name, where relative paths start, and the problems so far.
pub(super) struct Reader {
    file: Arc<Path>,
    folder: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

impl Reader {
    pub(super) fn new(file: Arc<Path>, folder: PathBuf) -> Self {
        Self {
            file,
            folder,
            problems: RefCell::default(),
        }
    }

    /// The tree's root.
    pub(super) fn root<'r>(&'r self, node: &'r Node) -> Field<'r> {
        Field {
            reader: self,
            node,
            key: String::new(),
            line: node.line,
        }
    }

    pub(super) fn place(&self, line: u64, key: &str) -> Place {
        let key = if key.is_empty() { "policy" } else { key };
        Place {
            file: Arc::clone(&self.file),
            line,
            key: key.into(),
        }
    }

    pub(super) fn refuse(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.place.line);
        problems.dedup();
        problems
    }
}

/// A value with its key.
#[derive(Clone)]
pub(super) struct Field<'r> {
    reader: &'r Reader,
    node: &'r Node,
    key: String,
    line: u64,
}

impl<'r> Field<'r> {
    pub(super) fn place(&self) -> Place {
        self.reader.place(self.line, &self.key)
    }

    pub(super) fn node(&self) -> &'r Node {
        self.node
    }

    /// Notes a problem with this value.
    pub(super) fn refuse(&self, reason: impl Into<String>) {
        self.reader.refuse(self.place().problem(reason));
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.refuse(format!("expected {what}, found {}", self.node.kind()));
        None
    }

    pub(super) fn string(&self) -> Option<&'r str> {
        match &self.node.value {
            Value::String(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => self.expected("a string (put it in quotes)"),
            _ => self.expected("a string"),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.expected("true or false"),
        }
    }

    /// What the mapping has under `name`.
    pub(super) fn name(&self) -> Option<(&'r str, Field<'r>)> {
        let Value::Mapping(_) = self.node.value else {
            return None;
        };
        let (_, field) = self.members().into_iter().find(|(key, _)| *key == "name")?;
        match &field.node.value {
            Value::String(name) => Some((name, field)),
            _ => None,
        }
    }

    /// `off` (YAML 1.1's boolean too), where it means "none".
    pub(super) fn is_off(&self) -> bool {
        match &self.node.value {
            Value::Bool(value) => !value,
            Value::String(text) => text == "off",
            _ => false,
        }
    }

    /// A whole number within `bounds`.
    pub(super) fn integer(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        let Value::Number(number) = &self.node.value else {
            return self.expected("a whole number");
        };
        match number.as_u64() {
            Some(value) if bounds.contains(&value) => Some(value),
            _ => {
                self.refuse(format!(
                    "`{number}` is not a whole number from {} to {}",
                    bounds.start(),
                    bounds.end()
                ));
                None
            }
        }
    }

    /// A string (or a plain number, as in `minimum_version: 1.3`) that `parse` turns into a value or a reason.
    pub(super) fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let number;
        let text = match &self.node.value {
            Value::String(text) => text,
            Value::Number(value) => {
                number = value.to_string();
                &number
            }
            _ => return self.expected("a string"),
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.refuse(reason);
                None
            }
        }
    }

    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.parse(scalar::duration)?;
        if bounds.contains(&value) {
            return Some(value);
        }
        self.refuse(format!(
            "must be from {:?} to {:?}",
            bounds.start(),
            bounds.end()
        ));
        None
    }

    pub(super) fn bytes(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.parse(scalar::bytes)?;
        if bounds.contains(&value) {
            return Some(value);
        }
        self.refuse(format!(
            "must be from {} to {} bytes",
            bounds.start(),
            bounds.end()
        ));
        None
    }

    /// A path, relative ones below the policy's folder; whether it exists is not looked at.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        if text.is_empty() {
            self.refuse("empty path");
            return None;
        }
        if text.contains('\0') {
            self.refuse("a path has no NUL byte");
            return None;
        }
        Some(self.reader.folder.join(text))
    }

    /// The file that the value names, up to `bytes_max` long.
    pub(super) fn file(&self, bytes_max: u64) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.path()?;
        match read_file(&path, bytes_max) {
            Ok(bytes) => Some((path, bytes)),
            Err(reason) => {
                self.refuse(reason);
                None
            }
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Vec<Field<'r>> {
        let Value::Sequence(items) = &self.node.value else {
            self.expected::<()>("a list");
            return Vec::new();
        };
        if items.len() > ITEMS_MAX {
            self.refuse(format!("more than {ITEMS_MAX} items"));
            return Vec::new();
        }
        let item = |(index, node): (usize, &'r Node)| Field {
            reader: self.reader,
            node,
            key: format!("{}[{index}]", self.key),
            line: node.line,
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The members of a mapping with free keys.
    pub(super) fn members(&self) -> Vec<(&'r str, Field<'r>)> {
        let Value::Mapping(entries) = &self.node.value else {
            self.expected::<()>("a mapping");
            return Vec::new();
        };
        let member = |entry: &'r super::node::Entry| {
            let key = match self.key.as_str() {
                "" => entry.key.clone(),
                key => format!("{key}.{}", entry.key),
            };
            let field = Field {
                reader: self.reader,
                node: &entry.node,
                key,
                line: entry.line,
            };
            (entry.key.as_str(), field)
        };
        entries.iter().map(member).collect()
    }

    /// A mapping of which only `keys` may be present.
    pub(super) fn section(&self, keys: &[&str]) -> Option<Section<'r>> {
        if !matches!(self.node.value, Value::Mapping(_)) {
            return self.expected("a mapping");
        }
        let members = self.members();
        for (key, field) in &members {
            if !keys.contains(key) {
                field.refuse(format!("unknown key, known here: {}", keys.join(", ")));
            }
        }
        Some(Section {
            field: self.clone(),
            members,
        })
    }
}

/// A mapping whose keys are known.
pub(super) struct Section<'r> {
    field: Field<'r>,
    members: Vec<(&'r str, Field<'r>)>,
}

impl<'r> Section<'r> {
    /// The mapping itself.
    pub(super) fn field(&self) -> &Field<'r> {
        &self.field
    }

    pub(super) fn optional(&self, key: &str) -> Option<&Field<'r>> {
        let found = self.members.iter().find(|(name, _)| *name == key);
        found.map(|(_, field)| field)
    }

    pub(super) fn required(&self, key: &str) -> Option<&Field<'r>> {
        let found = self.optional(key);
        if found.is_none() {
            self.field.refuse(format!("`{key}` is missing"));
        }
        found
    }

    /// The items of the list under `key`, none if it is absent.
    pub(super) fn list(&self, key: &str) -> Vec<Field<'r>> {
        self.optional(key).map(Field::items).unwrap_or_default()
    }
}

/// Reads a regular file of at most `bytes_max`, symbolic links followed; the reason names it.
///
/// What is opened is asked what it is, without waiting: a FIFO would hold us until somebody writes, a device has no end.
pub(super) fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let read = || -> std::io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        if !kind.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    let name = path.display();
    match read() {
        Ok(Some(bytes)) if bytes.len() as u64 > bytes_max => {
            Err(format!("{name} is larger than {bytes_max} bytes"))
        }
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!(
            "cannot read {name}: it is not a file but a pipe, a socket or a device"
        )),
        Err(error) => Err(format!("cannot read {name}: {}", describe(&error))),
    }
}

/// An I/O error in our style: no code, lower case.
pub(super) fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::IsADirectory => "it is a folder".into(),
        _ => {
            let text = error.to_string().to_lowercase();
            text.split(" (os error").next().unwrap_or_default().into()
        }
    }
}
