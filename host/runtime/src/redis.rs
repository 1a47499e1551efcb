//! Redis callouts, as Higress has them: what a plugin asks of a named cluster, and what comes back.
//!
//! Many calls share a connection, and their replies are told apart by their order alone. So a query must be one command, in the form that
//! clients send (an array of bulk strings), that is answered by one reply: nothing else could be answered without taking the reply of
//! another request. Higress sends whatever bytes it is given.

use std::{fmt, str, time::Duration};

use bytes::Bytes;

use crate::{abi::Status, limits::REDIS_TIMEOUT_MS};

/// How calls of one plugin to one cluster are made.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisOptions {
    /// Sent with the password; empty for the default user.
    pub user: Bytes,
    /// Nothing is sent where it and the user are empty.
    pub password: Bytes,
    /// The number to `SELECT`.
    pub database: Option<u32>,
    /// Of each call, from start to the whole reply.
    pub timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            user: Bytes::new(),
            password: Bytes::new(),
            database: None,
            timeout: Duration::from_millis(u64::from(REDIS_TIMEOUT_MS)),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("database", &self.database)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A command for a cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedisCall {
    /// One of [`PluginSpec::clusters`](crate::PluginSpec::clusters).
    pub cluster: String,
    /// One command as it goes over the wire. It is answered by one reply.
    pub query: Bytes,
}

/// What became of a callout.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisReply {
    /// One reply as it came over the wire; an error that Redis tells is one, too.
    Reply(Bytes),
    /// No whole reply in time, or at all.
    Failed,
}

/// The cluster's name, and the database that stands behind it: `NAME?db=1&…`. Higress' other words there set how long it gathers queries
/// before it sends them; here they go out at once.
pub(crate) fn target(service: &[u8]) -> Result<(&str, Option<u32>), Status> {
    let service = str::from_utf8(service).map_err(|_| Status::BadArgument)?;
    let Some((cluster, words)) = service.split_once('?') else {
        return Ok((service, None));
    };
    let database = words.split('&').find_map(|word| word.strip_prefix("db="));
    let database = database.map(|number| number.parse().map_err(|_| Status::BadArgument));
    Ok((cluster, database.transpose()?))
}

/// Commands that are answered by no reply or by many, and make the connection send what nobody asked for.
const NOT_ANSWERED_ONCE: [&[u8]; 10] = [
    b"MONITOR",
    b"PSUBSCRIBE",
    b"PSYNC",
    b"PUNSUBSCRIBE",
    b"REPLCONF",
    b"SSUBSCRIBE",
    b"SUBSCRIBE",
    b"SUNSUBSCRIBE",
    b"SYNC",
    b"UNSUBSCRIBE",
];

/// Whether this is one whole command, and one that is answered by one reply.
pub(crate) fn is_one_command(query: &[u8]) -> bool {
    let Some((count, mut rest)) = number(query, b'*') else {
        return false;
    };
    let mut words: [&[u8]; 2] = [b"", b""];
    for index in 0..count {
        let Some((word, after)) = bulk_string(rest) else {
            return false;
        };
        if let Some(place) = words.get_mut(index) {
            *place = word;
        }
        rest = after;
    }
    count > 0 && rest.is_empty() && is_answered_once(words)
}

fn is_answered_once([name, argument]: [&[u8]; 2]) -> bool {
    let silences = name.eq_ignore_ascii_case(b"CLIENT") && argument.eq_ignore_ascii_case(b"REPLY");
    !silences
        && !NOT_ANSWERED_ONCE
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other))
}

/// A string with its length before it, and what follows.
fn bulk_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = number(bytes, b'$')?;
    let (string, rest) = rest.split_at_checked(len)?;
    Some((string, rest.strip_prefix(b"\r\n")?))
}

/// A line of `mark` and a number, and what follows.
fn number(bytes: &[u8], mark: u8) -> Option<(usize, &[u8])> {
    // More than any query has bytes.
    const DIGITS_MAX: usize = 8;
    let rest = bytes.strip_prefix(&[mark])?;
    let end = rest
        .iter()
        .take(DIGITS_MAX + 1)
        .position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = rest.split_at_checked(end)?;
    let number = str::from_utf8(digits).ok()?.parse().ok()?;
    Some((number, rest.strip_prefix(b"\r\n")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_one_command_with_one_reply() {
        let good: &[&[u8]] = &[
            b"*1\r\n$4\r\nPING\r\n",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n",
            b"*2\r\n$3\r\nGET\r\n$4\r\n\r\n*1\r\n",
            b"*2\r\n$6\r\nclient\r\n$2\r\nid\r\n",
            b"*2\r\n$7\r\nPUBLISH\r\n$9\r\nSUBSCRIBE\r\n",
        ];
        for query in good {
            assert!(is_one_command(query), "{}", query.escape_ascii());
        }
        let bad: &[&[u8]] = &[
            b"",
            b"PING\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*+1\r\n$4\r\nPING\r\n",
            b"*1\r\n$4\r\nPING",
            b"*1\r\n$4\r\nPING\r",
            b"*1\r\n$4\r\nPING\r\n\r\n",
            b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
            b"*2\r\n$4\r\nPING\r\n",
            b"*1\r\n$5\r\nPING\r\n",
            b"*1\r\n$3\r\nPING\r\n",
            b"*1\r\n$\r\nPING\r\n",
            b"*1\n$4\nPING\n",
            b"*1\r\n:4\r\n",
            b"*999999999\r\n$4\r\nPING\r\n",
            b"*99999999\r\n$4\r\nPING\r\n",
            b"*1\r\n$99999999\r\nPING\r\n",
            b"*2\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n",
            b"*1\r\n$7\r\nMonitor\r\n",
            b"*3\r\n$8\r\nreplconf\r\n$3\r\nACK\r\n$1\r\n0\r\n",
            b"*3\r\n$6\r\nCLIENT\r\n$5\r\nreply\r\n$3\r\nOFF\r\n",
        ];
        for query in bad {
            assert!(!is_one_command(query), "{}", query.escape_ascii());
        }
    }

    #[test]
    fn a_database_may_stand_behind_the_cluster() {
        for (service, expected) in [
            ("redis", Ok(("redis", None))),
            ("redis?", Ok(("redis", None))),
            ("redis?db=7", Ok(("redis", Some(7)))),
            (
                "outbound|6379||redis.dns?buffer_flush_timeout=0&db=1&max_buffer_size_before_flush=0",
                Ok(("outbound|6379||redis.dns", Some(1))),
            ),
            ("redis?db=", Err(Status::BadArgument)),
            ("redis?db=-1", Err(Status::BadArgument)),
            ("redis?db=1\r\nFLUSHALL", Err(Status::BadArgument)),
        ] {
            assert_eq!(target(service.as_bytes()), expected, "{service}");
        }
        assert_eq!(target(b"\xff"), Err(Status::BadArgument));
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = RedisOptions {
            user: Bytes::from_static(b"alice"),
            password: Bytes::from_static(b"secret"),
            ..RedisOptions::default()
        };
        let shown = format!("{options:?}");
        assert!(
            !shown.contains("alice") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
