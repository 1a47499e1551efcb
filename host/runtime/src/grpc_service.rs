//! The upstream argument of gRPC callouts: a cluster's name, or Envoy's `envoy.config.core.v3.GrpcService` in protobuf's encoding, which the
//! C++ SDK passes.
//!
//! Read of it: `envoy_grpc` (1) with `cluster_name` (1) and `authority` (2), and `initial_metadata` (5) with `key` (1) and `value` (2).
//! Everything else is let be, as protobuf has it, but `google_grpc` (2): a plugin that wants that client gets no other.

/// Whom to call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GrpcService<'a> {
    pub(crate) cluster: &'a [u8],
    /// Empty where the cluster's name is to stand for it.
    pub(crate) authority: &'a [u8],
    pub(crate) metadata: Vec<(&'a [u8], &'a [u8])>,
    /// It wants a client that is not served.
    pub(crate) is_foreign: bool,
}

impl<'a> GrpcService<'a> {
    /// `None` where the bytes are not a protobuf message.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut service = Self::default();
        each(bytes, &mut |number, value| {
            match number {
                1 => {
                    service.is_foreign = false;
                    each(value, &mut |number, value| {
                        match number {
                            1 => service.cluster = value,
                            2 => service.authority = value,
                            _ => {}
                        }
                        Some(())
                    })?;
                }
                2 => service.is_foreign = true,
                5 => {
                    let mut pair: (&[u8], &[u8]) = (&[], &[]);
                    each(value, &mut |number, value| {
                        match number {
                            1 => pair.0 = value,
                            2 => pair.1 = value,
                            _ => {}
                        }
                        Some(())
                    })?;
                    service.metadata.push(pair);
                }
                _ => {}
            }
            Some(())
        })?;
        Some(service)
    }
}

/// Visits the length-delimited fields of a message and walks over the others. `None` where it is not a message.
fn each<'a>(mut bytes: &'a [u8], visit: &mut dyn FnMut(u64, &'a [u8]) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = tag >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return None;
        }
        match tag & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                visit(number, value)?;
            }
            5 => bytes = bytes.get(4..)?,
            // Groups are gone from proto3; 6 and 7 never were.
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read() {
        let full =
            b"\x0a\x0c\x0a\x04grpc\x12\x04name\x1a\x02\x08\x01\x2a\x08\x0a\x01k\x12\x03val\x2a\x00";
        assert_eq!(
            GrpcService::parse(full),
            Some(GrpcService {
                cluster: b"grpc",
                authority: b"name",
                metadata: vec![(b"k", b"val"), (b"", b"")],
                is_foreign: false,
            })
        );
        assert!(GrpcService::parse(b"\x12\x00").unwrap().is_foreign);
        assert_eq!(GrpcService::parse(b""), Some(GrpcService::default()));
        // Every cut of it is either no message or one with less in it; none panics.
        for end in 0..full.len() {
            if let Some(part) = GrpcService::parse(&full[..end]) {
                assert!(part.metadata.len() <= 2);
            }
        }
    }

    #[test]
    fn names_are_no_services() {
        for name in ["grpc", "upstream", "ext-authz", "a", "idp.example.com"] {
            assert_eq!(GrpcService::parse(name.as_bytes()), None, "{name}");
        }
        for bad in [
            &b"\x0a"[..],
            b"\x0a\x05abc",
            b"\x00",
            b"\x0b",
            b"\x08",
            b"\x09\x01",
            b"\x0d\x01",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0a\x02\x0a\x05",
        ] {
            assert_eq!(GrpcService::parse(bad), None, "{bad:?}");
        }
    }
}
