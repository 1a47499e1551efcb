//! Runs a phase of a script and writes down what the host answered.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::hostcalls;
use crate::script::{Script, Statement, Value, decode, encode};

/// Stands where the host wrote nothing.
const UNTOUCHED: u32 = 0xdead_beef;

/// What came of a phase.
#[derive(Default)]
pub(crate) struct Outcome {
    /// What the callback returns.
    pub(crate) action: u32,
    /// Ids of callouts made.
    pub(crate) calls: Vec<u32>,
    /// What was said.
    pub(crate) lines: Vec<String>,
}

/// Runs `phase`, if the script has it. `arguments` are the callback's own.
pub(crate) fn run(
    script: &Script,
    phase: &str,
    arguments: &[u32],
    variables: &mut HashMap<String, i64>,
    default: u32,
) -> Option<Outcome> {
    let statements = script.get(phase)?;
    let mut outcome = Outcome { action: default, ..Outcome::default() };
    for statement in statements {
        let number = |index: usize| match statement.arguments.get(index) {
            Some(Value::Number(number)) => *number,
            Some(Value::Variable(name)) => variables.get(name).copied().unwrap_or_default(),
            _ => 0,
        };
        match statement.word.as_str() {
            "return" => outcome.action = number(0) as u32,
            "args" => outcome.lines.push(format!("args={arguments:?}")),
            "arg" => outcome.lines.push(format!("arg{}={:?}", number(0), arguments.get(number(0) as usize))),
            "say" => {
                if let Some(Value::Bytes(text)) = statement.arguments.first() {
                    outcome.lines.push(String::from_utf8_lossy(text).into_owned());
                }
            }
            "differ" => outcome.lines.push(format!("differ={}", number(0) != number(1))),
            "minus" => outcome.lines.push(format!("minus={}", number(0) - number(1))),
            "low_bits" => outcome.lines.push(format!("low_bits={}", number(0) & 3)),
            "trap" => std::process::abort(),
            "loop" => loop {
                std::hint::black_box(0);
            },
            _ => {
                let line = hostcall(statement, variables, &mut outcome.calls);
                if !statement.is_silent {
                    outcome.lines.push(line);
                }
            }
        }
    }
    Some(outcome)
}

fn hostcall(statement: &Statement, variables: &mut HashMap<String, i64>, calls: &mut Vec<u32>) -> String {
    let Statement { keep, word, arguments, .. } = statement;
    let Some(signature) = hostcalls::signature(word) else { return format!("{word}: no such hostcall") };
    // Nothing here may move while the host has its address.
    let bytes: Vec<Vec<u8>> = arguments
        .iter()
        .map(|argument| match argument {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Pairs(pairs) => encode(pairs),
            _ => Vec::new(),
        })
        .collect();
    let places_at = arguments.iter().find_map(|argument| match argument {
        Value::Places(at) => Some(*at),
        _ => None,
    });
    let mut places = [[UNTOUCHED; 2]; 4];
    let mut numbers = Vec::new();
    let mut index = 0;
    let mut place = 0;
    for letter in signature.chars() {
        match letter {
            'n' | 'l' => {
                numbers.push(match arguments.get(index) {
                    Some(Value::Number(number)) => *number,
                    Some(Value::Variable(name)) => variables.get(name).copied().unwrap_or_default(),
                    _ => 0,
                });
                index += 1;
            }
            's' => {
                let part = match arguments.get(index) {
                    Some(Value::Wild) => [0xffff_fff0, 64],
                    _ => bytes.get(index).map_or([0, 0], |bytes| [bytes.as_ptr() as i64, bytes.len() as i64]),
                };
                numbers.extend(part);
                index += 1;
            }
            _ => {
                let one = places_at.map_or_else(|| places[place].as_mut_ptr() as i64, i64::from);
                numbers.push(one);
                place += 1;
                if letter == 'O' {
                    numbers.push(places_at.map_or_else(|| places[place].as_mut_ptr() as i64, i64::from));
                    place += 1;
                }
            }
        }
    }
    let Some(status) = hostcalls::call(word, &numbers) else { return format!("{word}: bad arguments") };
    let places = std::hint::black_box(places);
    let mut line = format!("{word}={status}");
    let mut place = 0;
    for letter in signature.chars().filter(|letter| "oqO".contains(*letter)) {
        let [number, high] = places[place];
        place += 1;
        if letter == 'O' {
            let [len, _] = places[place];
            place += 1;
            if places_at.is_none() && (number, len) != (UNTOUCHED, UNTOUCHED) {
                let _ = write!(line, " {}", given(word, number, len));
            }
            continue;
        }
        if number == UNTOUCHED || places_at.is_some() {
            continue;
        }
        let value = if letter == 'q' { i64::from(number) | i64::from(high) << 32 } else { i64::from(number) };
        if status == 0 && matches!(word.as_str(), "http_call" | "grpc_call" | "grpc_stream") {
            calls.push(number);
        }
        match keep {
            Some(name) => {
                variables.insert(name.clone(), value);
            }
            None => {
                let _ = write!(line, " {}", value as u64);
            }
        }
    }
    line
}

/// Bytes that the host gave; they are the guest's from then on.
fn given(word: &str, pointer: u32, len: u32) -> String {
    if pointer == 0 {
        return format!("null/{len}");
    }
    let bytes = unsafe { Vec::from_raw_parts(pointer as *mut u8, len as usize, (len as usize).max(1)) };
    if word == "get_header_map_pairs" {
        let Some(pairs) = decode(&bytes) else { return "not pairs".into() };
        let shown: Vec<String> = pairs
            .iter()
            .filter(|(name, _)| name.starts_with(b"t-"))
            .map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii()))
            .collect();
        return format!("[{}]", shown.join(", "));
    }
    let shown = &bytes[..bytes.len().min(80)];
    let more = if bytes.len() > 80 { format!("… {} bytes", bytes.len()) } else { String::new() };
    format!("'{}'{more}", shown.escape_ascii())
}
