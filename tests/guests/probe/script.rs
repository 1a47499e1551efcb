//! The probe's language: what it is to do in which callback.
//!
//! `request_headers: x=define_metric 0 'a'; increment_metric $x 1; return 1 | request_body: args`
//!
//! Phases are parted by `|`, statements by `;`. A statement is a hostcall without its `proxy_`, or a word of `run.rs`, with
//! arguments: a number, `$variable`, `'bytes'` with the escapes `\xNN` and `\'`, pairs `['name' 'value' …]`, `wild` (a pointer to
//! nowhere), `@null` and `@wild` (for the places that the host is to write to), `@now` and its like (the headers of a callout to
//! that path). `*n` behind bytes or pairs repeats them. `name=` before a hostcall keeps what it gave, and leaves that out of the
//! report; `!` before it leaves out all.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Number(i64),
    Variable(String),
    Bytes(Vec<u8>),
    Pairs(Vec<(Vec<u8>, Vec<u8>)>),
    Wild,
    Places(u32),
}

#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) keep: Option<String>,
    pub(crate) is_silent: bool,
    pub(crate) word: String,
    pub(crate) arguments: Vec<Value>,
}

/// Statements by phase.
pub(crate) type Script = BTreeMap<String, Vec<Statement>>;

pub(crate) fn parse(text: &[u8]) -> Result<Script, String> {
    let mut script = Script::new();
    let mut rest = text;
    while !rest.trim_ascii().is_empty() {
        let colon = rest
            .iter()
            .position(|byte| *byte == b':')
            .ok_or("a phase without a colon")?;
        let phase = String::from_utf8_lossy(rest[..colon].trim_ascii()).into_owned();
        rest = &rest[colon + 1..];
        let statements = script.entry(phase).or_default();
        loop {
            let (tokens, end, after) = tokens(rest)?;
            rest = after;
            let mut tokens = tokens.into_iter();
            if let Some(Token::Word(word)) = tokens.next() {
                let (keep, word) = match word.split_once('=') {
                    Some((keep, word)) => (Some(keep.to_owned()), word.to_owned()),
                    None => (None, word),
                };
                let (is_silent, word) = match word.strip_prefix('!') {
                    Some(word) => (true, word.to_owned()),
                    None => (false, word),
                };
                let arguments = tokens.map(value).collect::<Result<_, _>>()?;
                statements.push(Statement { keep, is_silent, word, arguments });
            }
            if end != b';' {
                break;
            }
        }
    }
    Ok(script)
}

enum Token {
    Word(String),
    Value(Value),
}

fn value(token: Token) -> Result<Value, String> {
    let word = match token {
        Token::Value(value) => return Ok(value),
        Token::Word(word) => word,
    };
    match word.as_str() {
        "wild" => Ok(Value::Wild),
        "@null" => Ok(Value::Places(0)),
        "@wild" => Ok(Value::Places(0xffff_fff0)),
        "@now" | "@gate" | "@hang" | "@reset" | "@broken" => Ok(Value::Pairs(
            [(":method", "GET"), (":path", &*word.replace('@', "/")), (":authority", "callee.test")]
                .map(|(name, value)| (name.into(), value.into()))
                .to_vec(),
        )),
        _ => match word.strip_prefix('$') {
            Some(variable) => Ok(Value::Variable(variable.to_owned())),
            None => word.parse().map(Value::Number).map_err(|_| format!("{word} is no number")),
        },
    }
}

/// The tokens of one statement, what ended it (`;`, `|`, or 0), and the rest.
fn tokens(mut rest: &[u8]) -> Result<(Vec<Token>, u8, &[u8]), String> {
    let mut tokens = Vec::new();
    loop {
        match rest.split_first() {
            None => return Ok((tokens, 0, rest)),
            Some((end @ (b';' | b'|'), after)) => return Ok((tokens, *end, after)),
            Some((b' ' | b'\n', after)) => rest = after,
            Some((b'\'', after)) => {
                let (mut bytes, after) = bytes(after)?;
                let (times, after) = times(after)?;
                bytes = bytes.repeat(times);
                tokens.push(Token::Value(Value::Bytes(bytes)));
                rest = after;
            }
            Some((b'[', after)) => {
                let mut strings = Vec::new();
                rest = after.trim_ascii_start();
                while let Some((b'\'', after)) = rest.split_first() {
                    let (string, after) = bytes(after)?;
                    strings.push(string);
                    rest = after.trim_ascii_start();
                }
                let after = rest.strip_prefix(b"]").ok_or("pairs without an end")?;
                let (times, after) = times(after)?;
                let mut pairs = Vec::new();
                for pair in strings.chunks(2) {
                    let [name, value] = pair else { return Err("a name without a value".into()) };
                    pairs.push((name.clone(), value.clone()));
                }
                let pairs = std::iter::repeat_n(pairs, times).flatten().collect();
                tokens.push(Token::Value(Value::Pairs(pairs)));
                rest = after;
            }
            Some(_) => {
                let end = rest
                    .iter()
                    .position(|byte| matches!(byte, b' ' | b';' | b'|' | b'\n'))
                    .unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                tokens.push(Token::Word(String::from_utf8_lossy(word).into_owned()));
                rest = after;
            }
        }
    }
}

/// Bytes up to the closing quote.
fn bytes(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut bytes = Vec::new();
    loop {
        match rest {
            [b'\'', after @ ..] => return Ok((bytes, after)),
            [b'\\', b'x', high, low, after @ ..] => {
                let digits = String::from_utf8_lossy(&[*high, *low]).into_owned();
                let byte = u8::from_str_radix(&digits, 16).map_err(|_| "a bad escape")?;
                bytes.push(byte);
                rest = after;
            }
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                bytes.push(*byte);
                rest = after;
            }
            [] => return Err("bytes without an end".into()),
        }
    }
}

/// `*n`, or once.
fn times(rest: &[u8]) -> Result<(usize, &[u8]), String> {
    let Some(rest) = rest.strip_prefix(b"*") else { return Ok((1, rest)) };
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    let number = String::from_utf8_lossy(&rest[..end]).parse().map_err(|_| "a bad number")?;
    Ok((number, &rest[end..]))
}

/// Pairs as the ABI has them.
pub(crate) fn encode(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut encoded = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        encoded.extend((name.len() as u32).to_le_bytes());
        encoded.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        for part in [name, value] {
            encoded.extend(part);
            encoded.push(0);
        }
    }
    encoded
}

/// The reverse; `None` for what is no such thing.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let count = number(0)?;
    let mut at = 4 + count * 8;
    let mut pairs = Vec::new();
    for pair in 0..count {
        let mut take = |len: usize| {
            let part = bytes.get(at..at + len)?.to_vec();
            at += len + 1;
            Some(part)
        };
        pairs.push((take(number(4 + pair * 8)?)?, take(number(8 + pair * 8)?)?));
    }
    Some(pairs)
}
