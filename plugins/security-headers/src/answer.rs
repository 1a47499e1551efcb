//! The pass over one answer: read every header once, write only what has to change.
//!
//! A hostcall costs about as much as looking at ten headers, so all are read with one, and each write is one. Where nothing is
//! to be removed and few headers are to be set, asking for these by name is cheaper still, as long as none is there.

use portcullis_sdk::{Error, Response};

use crate::plan::{Meaning, Plan, Verdict};

/// How many headers are asked for by name before reading all is the cheaper.
const ASKED_BY_NAME_MAX: usize = 2;

impl Plan {
    /// Makes the answer carry what the plan says.
    pub(crate) fn apply(&self, response: &mut Response<'_>) -> Result<(), Error> {
        let forbidden = match self.hsts {
            Some(hsts) if !response.connection().is_tls()? => Some(hsts),
            _ => None,
        };
        let mut found = Found::default();
        if !self.has_none_of_few(response)? {
            self.read(response, &mut found)?;
        }
        self.write(response, found, forbidden)
    }

    /// Whether it is known, at the price of few hostcalls, that nothing in the answer matters.
    fn has_none_of_few(&self, response: &Response<'_>) -> Result<bool, Error> {
        if self.removes || self.headers.len() > ASKED_BY_NAME_MAX {
            return Ok(false);
        }
        for header in &self.headers {
            if response.header(header.own.name())?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Judges what is there, and removes what leaks.
    fn read(&self, response: &mut Response<'_>, found: &mut Found) -> Result<(), Error> {
        for (name, value) in &response.all_headers()? {
            match self.names.find(name) {
                None => {}
                Some((name, Meaning::Remove)) => response.remove_header(name)?,
                Some((_, Meaning::Judge(at))) => {
                    let Some(header) = self.headers.get(at) else {
                        continue;
                    };
                    let mark = 1_u64 << at;
                    if found.once & mark != 0 {
                        found.several |= mark;
                    }
                    found.once |= mark;
                    match header.judge(value) {
                        Verdict::Keep => found.stands |= mark,
                        Verdict::Replace => {}
                        Verdict::Merge(value) => found.merged.push((at, value)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes what is missing or too weak; the header at `forbidden` may not be in this answer at all.
    fn write(
        &self,
        response: &mut Response<'_>,
        found: Found,
        forbidden: Option<usize>,
    ) -> Result<(), Error> {
        for (header, at) in self.headers.iter().zip(0..) {
            let mark = 1_u64 << at;
            if forbidden == Some(at) {
                if found.once & mark != 0 {
                    response.remove_header(header.own.name())?;
                }
            } else if found.once & mark == 0 {
                response.add_checked_header(&header.own)?;
            } else if found.several & mark != 0 {
                if header.judge_several(found.stands & mark != 0) != Verdict::Keep {
                    // Hosts differ on what becomes of the second line when a header is replaced.
                    response.remove_header(header.own.name())?;
                    response.add_checked_header(&header.own)?;
                }
            } else if let Some((_, value)) = found.merged.iter().find(|(merged, _)| *merged == at) {
                response.set_header(header.own.name(), value)?;
            } else if found.stands & mark == 0 {
                response.set_checked_header(&header.own)?;
            }
        }
        Ok(())
    }
}

/// What an answer has of the plan's headers: a bit for each place (`limits` keeps the places below 64).
#[derive(Default)]
struct Found {
    once: u64,
    several: u64,
    /// At least one line may stand.
    stands: u64,
    merged: Vec<(usize, Vec<u8>)>,
}
