//! JSON (RFC 8259) read into a tree, for configurations.
//!
//! Why not serde_json: its reader is generic over the type read, so a module pays for it again with every structure;
//! it brings the printing of floats (25 KiB) for its messages, and those name a line and column of a text that the
//! operator never wrote. The tree is read once, without generics; the layer over it (`tree`) knows the path of a fault.
//!
//! Stricter than the RFC asks: a key that comes twice is refused, as is anything behind the value.

use std::borrow::Cow;

use crate::limits;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    /// A number with a fraction or an exponent, or one beyond 64 bits, as it was written.
    Float(String),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Reads one value; the error says what is wrong and at which byte.
pub(crate) fn parse(bytes: &[u8]) -> Result<Json, String> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.value(0).and_then(|value| {
        reader.space();
        if reader.at == bytes.len() {
            Ok(value)
        } else {
            Err("something stands behind the value")
        }
    });
    value.map_err(|reason| {
        let mut text = String::from(reason);
        text.push_str(" (JSON, byte ");
        crate::log::push_number(&mut text, reader.at as u64);
        text.push(')');
        text
    })
}

/// The value of a [`Json::Float`] of up to 15 digits and a small exponent, as operators write them; there two exact
/// floats and one operation give the nearest float (Clinger 1990). The standard library's reading of the others would
/// cost 16 KiB a module.
pub(crate) fn float(text: &str) -> Option<f64> {
    let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let mut exponent: i32 = exponent.parse().ok()?;
    let (mut mantissa, mut negative, mut fraction) = (0_u32, false, false);
    let mut high = 0_u32; // the digits above the last nine
    let mut count = 0;
    for byte in digits.bytes() {
        match byte {
            b'-' => negative = true,
            b'.' => fraction = true,
            digit => {
                let digit = u32::from(digit.wrapping_sub(b'0'));
                if count > 0 || digit > 0 {
                    count += 1;
                }
                if count > 15 {
                    return None;
                }
                let next = u64::from(mantissa) * 10 + u64::from(digit);
                high = high
                    .wrapping_mul(10)
                    .wrapping_add(u32::try_from(next / 1_000_000_000).ok()?);
                mantissa = u32::try_from(next % 1_000_000_000).ok()?;
                exponent = exponent.checked_sub(i32::from(fraction))?;
            }
        }
    }
    let mut power = 1.0;
    for _ in 0..exponent.unsigned_abs().min(23) {
        power *= 10.0;
    }
    let whole = f64::from(high) * 1e9 + f64::from(mantissa);
    let number = match exponent {
        -22..0 => whole / power,
        0..=22 => whole * power,
        _ => return None,
    };
    Some(if negative { -number } else { number })
}

/// What is neither an object, a list, a string, a number nor a word.
pub(crate) const NO_VALUE: &str = "no value starts so";

/// Where a text is read.
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Result<Json, &'static str> {
        if depth > limits::JSON_DEPTH_MAX {
            return Err("nested too deep");
        }
        self.space();
        match self.peek().ok_or("a value is missing")? {
            b'{' => self.object(depth),
            b'[' => self.list(depth),
            b'"' => Ok(Json::Text(self.text()?.into_owned())),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true").map(|()| Json::Bool(true)),
            b'f' => self.word(b"false").map(|()| Json::Bool(false)),
            b'n' => self.word(b"null").map(|()| Json::Null),
            _ => Err(NO_VALUE),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, &'static str> {
        self.at += 1;
        let mut members: Vec<(String, Json)> = Vec::new();
        self.space();
        if self.take(b'}') {
            return Ok(Json::Object(members));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err("a key is missing");
            }
            let key = self.text()?.into_owned();
            if members.iter().any(|(known, _)| *known == key) {
                return Err("a key comes twice");
            }
            self.space();
            if !self.take(b':') {
                return Err("a colon is missing");
            }
            let value = self.value(depth + 1)?;
            members.push((key, value));
            self.space();
            if self.take(b'}') {
                return Ok(Json::Object(members));
            }
            if !self.take(b',') {
                return Err("a comma or the end of an object is missing");
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json, &'static str> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.take(b']') {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(Json::List(items));
            }
            if !self.take(b',') {
                return Err("a comma or the end of a list is missing");
            }
        }
    }

    /// A string; where it has no escape it is what stands there.
    pub(crate) fn text(&mut self) -> Result<Cow<'a, str>, &'static str> {
        const ENDLESS: &str = "a string has no end";
        const NOT_UTF8: &str = "a string is not UTF-8";
        self.at += 1;
        let rest = self.bytes.get(self.at..).ok_or(ENDLESS)?;
        let plain = rest
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))
            .ok_or(ENDLESS)?;
        let plain_text = rest.get(..plain).ok_or(ENDLESS)?;
        self.at += plain;
        if self.take(b'"') {
            let text = std::str::from_utf8(plain_text);
            return text.map(Cow::Borrowed).map_err(|_| NOT_UTF8);
        }
        let mut text = plain_text.to_vec();
        loop {
            let byte = self.peek().ok_or(ENDLESS)?;
            self.at += 1;
            match byte {
                b'"' => {
                    let text = String::from_utf8(text);
                    return text.map(Cow::Owned).map_err(|_| NOT_UTF8);
                }
                b'\\' => {
                    let escape = self.peek().ok_or(ENDLESS)?;
                    self.at += 1;
                    text.push(match escape {
                        b'"' | b'\\' | b'/' => escape,
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            let character = self.escaped_character()?;
                            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        _ => return Err("there is no such escape"),
                    });
                }
                0..=0x1f => return Err("a control character stands in a string"),
                _ => text.push(byte),
            }
        }
    }

    /// What follows `\u`: four digits, or a surrogate pair.
    fn escaped_character(&mut self) -> Result<char, &'static str> {
        const LONE: &str = "a lone surrogate stands in a string";
        let high = self.four_digits()?;
        if !(0xd800..0xe000).contains(&high) {
            return char::from_u32(high).ok_or(LONE);
        }
        if !(self.take(b'\\') && self.take(b'u')) {
            return Err(LONE);
        }
        let low = self.four_digits()?;
        if high >= 0xdc00 || !(0xdc00..0xe000).contains(&low) {
            return Err(LONE);
        }
        char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)).ok_or(LONE)
    }

    fn four_digits(&mut self) -> Result<u32, &'static str> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            value = value << 4 | digit.ok_or("\\u wants four hex digits")?;
            self.at += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Json, &'static str> {
        let (text, whole) = self.number_text()?;
        let number = match (whole, text.starts_with('-')) {
            (false, _) => None,
            (true, false) => text.parse().ok().map(Json::Unsigned),
            (true, true) => text.parse().ok().map(Json::Signed),
        };
        Ok(number.unwrap_or_else(|| Json::Float(text.into())))
    }

    /// A number as it is written, and whether it has neither a fraction nor an exponent.
    pub(crate) fn number_text(&mut self) -> Result<(&'a str, bool), &'static str> {
        const MALFORMED: &str = "a number is malformed";
        let start = self.at;
        self.take(b'-');
        let digits_at = self.at;
        let digits = self.digits();
        if digits == 0 || (digits > 1 && self.bytes.get(digits_at) == Some(&b'0')) {
            return Err(MALFORMED);
        }
        let mut whole = true;
        if self.take(b'.') {
            whole = false;
            if self.digits() == 0 {
                return Err(MALFORMED);
            }
        }
        if self.take(b'e') || self.take(b'E') {
            whole = false;
            let _ = self.take(b'+') || self.take(b'-');
            if self.digits() == 0 {
                return Err(MALFORMED);
            }
        }
        let text = self
            .bytes
            .get(start..self.at)
            .and_then(|text| std::str::from_utf8(text).ok())
            .ok_or(MALFORMED)?;
        Ok((text, whole))
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    pub(crate) fn word(&mut self, word: &[u8]) -> Result<(), &'static str> {
        if !self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word))
        {
            return Err(NO_VALUE);
        }
        self.at += word.len();
        Ok(())
    }

    pub(crate) fn space(&mut self) {
        while self
            .peek()
            .is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
        {
            self.at += 1;
        }
    }

    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::float;
    use crate::random::Random;

    #[test]
    fn floats_are_the_nearest() {
        for (text, value) in [
            ("0.0", Some(0.0)),
            ("-0.5", Some(-0.5)),
            ("1.5", Some(1.5)),
            ("2.5e1", Some(25.0)),
            ("1E+3", Some(1000.0)),
            ("0.000000000000000001", Some(1e-18)),
            ("999999999999999.0", None), // 16 digits
            ("99999999999999.9", Some(99_999_999_999_999.9)),
            ("1e23", None),
            ("1e-23", None),
            ("1e99999999999", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(float(text), value, "{text}");
        }
        let mut random = Random::new(3);
        for _ in 0..100_000 {
            let (whole, fraction) = (random.next() % 100_000_000, random.next() % 10_000_000);
            let text = format!("{whole}.{fraction:07}e-{}", random.below(15));
            assert_eq!(float(&text), Some(text.parse().unwrap()), "{text}");
        }
    }
}
