//! The one way to a guest's bytes.
//!
//! A pointer and a length from a guest are an allegation. [`range`] checks it against the memory's size at this moment; only what
//! it returns reaches a slice, and no slice lives across a call into the guest, which may grow, and so move, its memory.

use std::ops::Range;

use crate::abi::{Failure, Status};

const INVALID: Failure = Failure::Status(Status::InvalidMemoryAccess);

/// The range `pointer..pointer + len`, if all of it lies in a memory of `size` bytes. An empty range is checked as well: a null
/// pointer passes, one beyond the end does not, as in Envoy.
pub(crate) fn range(pointer: u32, len: u32, size: usize) -> Result<Range<usize>, Failure> {
    let start = usize::try_from(pointer).map_err(|_| INVALID)?;
    let len = usize::try_from(len).map_err(|_| INVALID)?;
    match start.checked_add(len) {
        Some(end) if end <= size => Ok(start..end),
        _ => Err(INVALID),
    }
}

pub(crate) fn slice(memory: &[u8], pointer: u32, len: u32) -> Result<&[u8], Failure> {
    memory
        .get(range(pointer, len, memory.len())?)
        .ok_or(INVALID)
}

pub(crate) fn slice_mut(memory: &mut [u8], pointer: u32, len: u32) -> Result<&mut [u8], Failure> {
    let range = range(pointer, len, memory.len())?;
    memory.get_mut(range).ok_or(INVALID)
}

pub(crate) fn read_u32(memory: &[u8], pointer: u32) -> Result<u32, Failure> {
    let bytes = slice(memory, pointer, 4)?
        .first_chunk::<4>()
        .ok_or(INVALID)?;
    Ok(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_within_memory() {
        #[track_caller]
        fn check(pointer: u32, len: u32, valid: bool) {
            assert_eq!(
                range(pointer, len, 65536).is_ok(),
                valid,
                "{pointer} + {len}"
            );
        }
        check(0, 0, true);
        check(0, 65536, true);
        check(65536, 0, true);
        check(65535, 1, true);
        check(65535, 2, false);
        check(65537, 0, false);
        check(u32::MAX, 0, false);
        check(u32::MAX, u32::MAX, false);
        check(1, u32::MAX, false);
        assert_eq!(range(0, 0, 0), Ok(0..0));
    }

    #[test]
    fn reads_and_writes_are_bounded() {
        let mut memory = [0; 8];
        let place = slice_mut(&mut memory, 4, 4).unwrap();
        place.copy_from_slice(&7u32.to_le_bytes());
        assert_eq!(read_u32(&memory, 4), Ok(7));
        assert_eq!(read_u32(&memory, 5), Err(INVALID));
        assert_eq!(slice_mut(&mut memory, 6, 3), Err(INVALID));
        assert!(slice_mut(&mut memory, 8, 1).is_err());
    }
}
