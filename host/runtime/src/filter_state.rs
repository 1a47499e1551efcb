//! Filter state: what filters leave behind for later ones, in Envoy's sense of the word: properties that they set, declared before or not,
//! and objects under Envoy's own names.
//!
//! Life spans are Envoy's: an exchange, or the connection it came over. A declaration holds for the plugin that made it; what was made read-only
//! is so for everybody.

use std::cell::RefCell;

use bytes::Bytes;

use crate::{
    abi::Status,
    limits::{CONNECTION_PROPERTY_BYTES_MAX, PROPERTIES_MAX, PROPERTY_BYTES_MAX},
};

/// Properties that plugins set: few, so searched one by one. They are read back under the very path they were set with.
#[derive(Debug)]
pub(crate) struct Properties {
    entries: Vec<Entry>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    path: Box<[u8]>,
    value: Bytes,
    readonly: bool,
}

impl Default for Properties {
    fn default() -> Self {
        Self::bounded(PROPERTY_BYTES_MAX)
    }
}

impl Properties {
    fn bounded(bytes_max: usize) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Bytes> {
        self.entries
            .iter()
            .find(|entry| *entry.path == *path)
            .map(|entry| &entry.value)
    }

    /// `readonly` is for an entry that is made now; what is there keeps its own.
    pub(crate) fn set(&mut self, path: &[u8], value: &[u8], readonly: bool) -> Result<(), Status> {
        let count = self.entries.len();
        let old = self.entries.iter_mut().find(|entry| *entry.path == *path);
        if old.as_ref().is_some_and(|entry| entry.readonly) {
            return Err(Status::BadArgument);
        }
        let replaced = old
            .as_ref()
            .map_or(0, |entry| entry.path.len() + entry.value.len());
        let bytes = self.bytes - replaced + path.len() + value.len();
        if bytes > self.bytes_max {
            return Err(Status::InternalFailure);
        }
        match old {
            Some(entry) => entry.value = Bytes::copy_from_slice(value),
            None if count >= PROPERTIES_MAX => return Err(Status::InternalFailure),
            None => self.entries.push(Entry {
                path: path.into(),
                value: Bytes::copy_from_slice(value),
                readonly,
            }),
        }
        self.bytes = bytes;
        Ok(())
    }
}

/// What filters left on a connection. Made empty by the embedder with the connection; its exchanges share it.
#[derive(Debug)]
pub struct ConnectionState(RefCell<Properties>);

impl Default for ConnectionState {
    fn default() -> Self {
        Self(RefCell::new(Properties::bounded(
            CONNECTION_PROPERTY_BYTES_MAX,
        )))
    }
}

impl ConnectionState {
    pub(crate) fn get(&self, path: &[u8]) -> Option<Bytes> {
        self.0.try_borrow().ok()?.get(path).cloned()
    }
}

/// How long what is set lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LifeSpan {
    #[default]
    Exchange,
    Connection,
}

/// How a declared property behaves. Types and schemas are for readers inside of a value, of which there are none here: a value is read whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prototype {
    pub(crate) readonly: bool,
    pub(crate) span: LifeSpan,
}

/// What one plugin declared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declarations(Vec<(Box<[u8]>, Prototype)>);

impl Declarations {
    /// The first declaration of a name stands.
    pub(crate) fn add(&mut self, name: &[u8], prototype: Prototype) -> Result<(), Status> {
        if self.0.iter().any(|(known, _)| **known == *name) {
            return Err(Status::BadArgument);
        }
        if self.0.len() >= PROPERTIES_MAX {
            return Err(Status::InternalFailure);
        }
        self.0.push((name.into(), prototype));
        Ok(())
    }

    /// The default for a name that was not declared.
    pub(crate) fn of(&self, name: &[u8]) -> Prototype {
        let found = self.0.iter().find(|(known, _)| **known == *name);
        found.map(|(_, prototype)| *prototype).unwrap_or_default()
    }
}

/// Sets a property of an exchange: where it stands already, or where its declaration says.
pub(crate) fn set(
    exchange: &RefCell<Properties>,
    connection: &ConnectionState,
    path: &[u8],
    value: &[u8],
    prototype: Prototype,
) -> Result<(), Status> {
    let mut exchange = exchange
        .try_borrow_mut()
        .map_err(|_| Status::InternalFailure)?;
    let mut connection = connection
        .0
        .try_borrow_mut()
        .map_err(|_| Status::InternalFailure)?;
    let lasts = connection.get(path).is_some() || prototype.span == LifeSpan::Connection;
    if exchange.get(path).is_none() && lasts {
        connection.set(path, value, prototype.readonly)
    } else {
        exchange.set(path, value, prototype.readonly)
    }
}

/// What the value of one of Envoy's objects must be.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Number,
}

/// The objects that Envoy makes from bytes (docs/root/configuration/advanced/well_known_filter_state.rst). Kept for plugins to read;
/// what they steer in Envoy (dynamic clusters, tunnels, SNI) is not here to be steered.
const OBJECTS: &[(&str, Form)] = &[
    ("envoy.network.application_protocols", Form::Text),
    ("envoy.network.upstream_server_name", Form::Text),
    ("envoy.network.upstream_subject_alt_names", Form::Text),
    ("envoy.tcp_proxy.cluster", Form::Text),
    ("envoy.upstream.dynamic_host", Form::Text),
    ("envoy.upstream.dynamic_port", Form::Number),
];

/// Under which path an object is kept and read, if its name and value are good.
pub(crate) fn object_path(name: &str, value: &str) -> Result<Vec<u8>, Status> {
    let (_, form) = OBJECTS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or(Status::NotFound)?;
    match form {
        Form::Number if value.parse::<u32>().is_err() => Err(Status::BadArgument),
        Form::Text | Form::Number => Ok([b"filter_state\0", name.as_bytes()].concat()),
    }
}

/// Whether this is the path of one of Envoy's objects.
pub(crate) fn is_object(path: &[u8]) -> bool {
    path.strip_prefix(b"filter_state\0")
        .is_some_and(|name| OBJECTS.iter().any(|(known, _)| known.as_bytes() == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_bounded() {
        let mut properties = Properties::default();
        properties.set(b"my.x", b"1", false).unwrap();
        properties.set(b"my.x", b"22", false).unwrap();
        assert_eq!(properties.get(b"my.x").unwrap(), "22");
        assert!(properties.get(b"my\0x").is_none());
        assert_eq!(
            properties.set(b"big", &[0; PROPERTY_BYTES_MAX], false),
            Err(Status::InternalFailure)
        );
        properties
            .set(b"my.x", &vec![0; PROPERTY_BYTES_MAX - 4], false)
            .unwrap();
        assert_eq!(
            properties.set(b"y", b"", false),
            Err(Status::InternalFailure)
        );
        properties.set(b"my.x", b"", false).unwrap();
        for number in 1..PROPERTIES_MAX {
            properties
                .set(number.to_string().as_bytes(), b"", false)
                .unwrap();
        }
        assert_eq!(
            properties.set(b"one more", b"", false),
            Err(Status::InternalFailure)
        );
    }

    #[test]
    fn declarations_say_where_a_property_stands_and_whether_it_stays() {
        let mut declared = Declarations::default();
        let readonly = Prototype {
            readonly: true,
            span: LifeSpan::Exchange,
        };
        let lasting = Prototype {
            readonly: false,
            span: LifeSpan::Connection,
        };
        declared.add(b"once", readonly).unwrap();
        declared.add(b"lasting", lasting).unwrap();
        assert_eq!(declared.add(b"once", lasting), Err(Status::BadArgument));
        let connection = ConnectionState::default();
        for _ in 0..2 {
            let exchange = RefCell::default();
            let set = |name: &[u8], value: &[u8]| {
                set(&exchange, &connection, name, value, declared.of(name))
            };
            set(b"once", b"1").unwrap();
            assert_eq!(set(b"once", b"2"), Err(Status::BadArgument));
            set(b"lasting", b"1").unwrap();
            set(b"plain", b"1").unwrap();
            set(b"plain", b"2").unwrap();
            let exchange = exchange.borrow();
            assert_eq!(exchange.get(b"plain").unwrap(), "2");
            assert_eq!(exchange.get(b"once").unwrap(), "1");
            assert!(exchange.get(b"lasting").is_none());
        }
        assert_eq!(connection.get(b"lasting").unwrap(), "1");
        let exchange = RefCell::default();
        // Whoever did not declare it finds it where it is.
        let plain = Prototype::default();
        set(&exchange, &connection, b"lasting", b"3", plain).unwrap();
        assert_eq!(connection.get(b"lasting").unwrap(), "3");
        let large = vec![0; CONNECTION_PROPERTY_BYTES_MAX];
        let refused = set(&exchange, &connection, b"lasting", &large, lasting);
        assert_eq!(
            refused,
            Err(Status::InternalFailure),
            "a connection holds less"
        );
        set(&exchange, &connection, b"large", &large, plain).unwrap();
        let mut many = Declarations::default();
        for number in 0..PROPERTIES_MAX {
            many.add(&number.to_le_bytes(), plain).unwrap();
        }
        assert_eq!(many.add(b"one more", plain), Err(Status::InternalFailure));
    }
}
