//! `compress` and `uncompress`: zlib (RFC 1950) at its usual level, arguments and results as they are.

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use portcullis_runtime::Status;

use crate::limits::{COMPRESS_BYTES_MAX, UNCOMPRESS_BYTES_MAX};

pub(super) fn compress(plain: &[u8]) -> Result<Vec<u8>, Status> {
    if plain.len() > COMPRESS_BYTES_MAX {
        return Err(Status::InternalFailure);
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(plain)
        .and_then(|()| encoder.finish())
        .map_err(|_| Status::SerializationFailure)
}

/// Bytes behind the end of the stream are read over, as zlib's `uncompress` does.
pub(super) fn uncompress(packed: &[u8]) -> Result<Vec<u8>, Status> {
    let mut plain = Vec::new();
    let bound = u64::try_from(UNCOMPRESS_BYTES_MAX).unwrap_or(u64::MAX);
    ZlibDecoder::new(packed)
        .take(bound.saturating_add(1))
        .read_to_end(&mut plain)
        .map_err(|_| Status::SerializationFailure)?;
    if plain.len() > UNCOMPRESS_BYTES_MAX {
        return Err(Status::InternalFailure);
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for plain in [&b""[..], b"a", &[7; 100_000]] {
            let packed = compress(plain).unwrap();
            assert!(packed.starts_with(&[0x78]), "zlib");
            assert_eq!(uncompress(&packed).unwrap(), plain);
        }
    }

    #[test]
    fn what_is_no_zlib_is_refused() {
        let whole = compress(b"some text that is long enough").unwrap();
        let mut wrong_sum = whole.clone();
        if let Some(last) = wrong_sum.last_mut() {
            *last ^= 1;
        }
        for packed in [&b""[..], b"plain", &whole[..whole.len() - 5], &wrong_sum] {
            assert_eq!(
                uncompress(packed),
                Err(Status::SerializationFailure),
                "{packed:?}"
            );
        }
        let behind = [&whole[..], b"more"].concat();
        assert_eq!(
            uncompress(&behind).unwrap(),
            b"some text that is long enough"
        );
    }

    #[test]
    fn both_are_bounded() {
        let large = vec![0; UNCOMPRESS_BYTES_MAX];
        assert!(compress(&large[..COMPRESS_BYTES_MAX]).is_ok());
        assert_eq!(
            compress(&large[..=COMPRESS_BYTES_MAX]),
            Err(Status::InternalFailure)
        );
        let pack = |plain: &[u8]| {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(
            uncompress(&pack(&large)).unwrap().len(),
            UNCOMPRESS_BYTES_MAX
        );
        let bomb = pack(&vec![0; UNCOMPRESS_BYTES_MAX + 1]);
        assert_eq!(uncompress(&bomb), Err(Status::InternalFailure));
    }
}
