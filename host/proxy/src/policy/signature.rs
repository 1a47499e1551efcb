//! `signature`: who must have signed a module, in minisign's format (jedisct1.github.io/minisign, "signature format").
//!
//! Only prehashed signatures count, which minisign has made by default since 0.10, and only a file that is nothing but a signature: four
//! lines. Its trusted comment is part of what is signed.

use std::fmt::Display;
use std::path::PathBuf;

use minisign_verify::{Error, PublicKey, Signature};

use super::limits::SIGNATURE_BYTES_MAX;
use super::module::WasmModule;
use super::reader::Field;

const KEYS: &[&str] = &["minisign_public_key", "file"];

/// A signature that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSignature {
    /// Whose it is: base64, the second line of `minisign.pub`.
    pub minisign_public_key: String,
    /// Absolute path.
    pub file: PathBuf,
}

impl ModuleSignature {
    /// Reads what the policy asks for, and holds the module to it.
    pub(super) fn read(field: &Field<'_>, module: &WasmModule) -> Option<Self> {
        let section = field.section(KEYS)?;
        let text = section.required("minisign_public_key");
        let key = text.and_then(|field| field.parse(public_key));
        let file_field = section.required("file")?;
        let (file, bytes) = file_field.file(SIGNATURE_BYTES_MAX)?;
        let (key, minisign_public_key) = key?;
        if let Err(fault) = verify(&key, &bytes, &module.bytes) {
            file_field.refuse(fault.describe(&file.display(), &module.source));
            return None;
        }
        Some(Self {
            minisign_public_key,
            file,
        })
    }
}

/// What is wrong with a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    NotASignature,
    UnknownAlgorithm,
    OtherKey,
    NotPrehashed,
    Mismatch,
}

impl Fault {
    fn describe(self, file: &dyn Display, module: &dyn Display) -> String {
        match self {
            Self::NotASignature => format!(
                "{file} is not a minisign signature: four lines, the first begins with `untrusted comment: `, the third with `trusted comment: `"
            ),
            Self::UnknownAlgorithm => {
                format!("{file} is signed with an algorithm that is not known")
            }
            Self::OtherKey => {
                format!("{file} was made with another key than `minisign_public_key`")
            }
            Self::NotPrehashed => format!(
                "{file} is signed the old way, without hashing first: sign the module again with minisign 0.10 or later"
            ),
            Self::Mismatch => format!("{file} does not sign {module}: one of them was changed"),
        }
    }
}

fn public_key(text: &str) -> Result<(PublicKey, String), String> {
    match PublicKey::from_base64(text) {
        Ok(key) => Ok((key, text.to_owned())),
        Err(_) => Err(format!(
            "`{text}` is not a minisign public key: the second line of minisign.pub, 56 characters of base64"
        )),
    }
}

fn verify(key: &PublicKey, signature: &[u8], module: &[u8]) -> Result<(), Fault> {
    let text = std::str::from_utf8(signature).map_err(|_| Fault::NotASignature)?;
    let is_whole = text.lines().count() == 4 && text.starts_with("untrusted comment: ");
    if !is_whole {
        return Err(Fault::NotASignature);
    }
    let signature = Signature::decode(text).map_err(|error| match error {
        Error::UnsupportedAlgorithm => Fault::UnknownAlgorithm,
        _ => Fault::NotASignature,
    })?;
    key.verify(module, &signature, false)
        .map_err(|error| match error {
            Error::UnexpectedKeyId => Fault::OtherKey,
            Error::UnexpectedAlgorithm => Fault::NotPrehashed,
            _ => Fault::Mismatch,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty module, and what rust-minisign 0.10 made of it with two keys.
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    const KEY: &str = "RWSIwnFxAXT+CFDifA9q6E7wsJDfypDWYc/yY60s1DsU8IGqirvlxgrJ";
    const SIGNATURE: &str = "untrusted comment: signature of a test
RUSIwnFxAXT+CPB9bFGW+pH4I21Ns0EHgEniK75jV6VCQpeWQiZBgqfyT95FdtRaKjqcjodvnHxL5+bXYNZg0lhMLxzwB/flvAI=
trusted comment: an empty module
1IrRWF128uAiI59ZCQ9f2lixxPlaz43DO7qtnXfDbX0MSVz/Quwo24wHa/JzzEcII+hBOdpzvMF+R9rmu8n/BA==
";
    const OTHER_KEY: &str = "RWTjLR5p6AgTca9RRzytMvn95hhBl7bOChZoVl3zgo9MLbGqnopolegv";

    fn check(key: &str, signature: &str, module: &[u8]) -> Result<(), Fault> {
        verify(&public_key(key).unwrap().0, signature.as_bytes(), module)
    }

    #[test]
    fn a_good_signature_is_good() {
        assert_eq!(check(KEY, SIGNATURE, MODULE), Ok(()));
        assert_eq!(check(KEY, SIGNATURE.trim_end(), MODULE), Ok(()));
        assert_eq!(check(KEY, &SIGNATURE.replace('\n', "\r\n"), MODULE), Ok(()));
        let other = SIGNATURE.replace("signature of a test", "anything");
        assert_eq!(
            check(KEY, &other, MODULE),
            Ok(()),
            "nobody signs the first line"
        );
    }

    #[test]
    fn anything_else_is_refused_and_says_why() {
        let lines: Vec<_> = SIGNATURE.lines().collect();
        let with = |index: usize, line: String| {
            let mut lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
            lines[index] = line;
            lines.join("\n")
        };
        // The key's id and its key are two things: one key under the other's id.
        let borrowed = format!("{}K{}", &KEY[..13], &OTHER_KEY[14..]);
        for (name, key, signature, module, expected) in [
            (
                "another key",
                OTHER_KEY,
                SIGNATURE.to_owned(),
                MODULE,
                Fault::OtherKey,
            ),
            (
                "another key of the same id",
                &borrowed,
                SIGNATURE.to_owned(),
                MODULE,
                Fault::Mismatch,
            ),
            (
                "another module",
                KEY,
                SIGNATURE.to_owned(),
                b"\0asm\x01\0\0\x01",
                Fault::Mismatch,
            ),
            (
                "a longer module",
                KEY,
                SIGNATURE.to_owned(),
                b"\0asm\x01\0\0\0\0",
                Fault::Mismatch,
            ),
            (
                "another comment",
                KEY,
                SIGNATURE.replace("an empty", "a full"),
                MODULE,
                Fault::Mismatch,
            ),
            (
                "junk behind",
                KEY,
                format!("{SIGNATURE}\n"),
                MODULE,
                Fault::NotASignature,
            ),
            (
                "a line behind",
                KEY,
                format!("{SIGNATURE}x"),
                MODULE,
                Fault::NotASignature,
            ),
            (
                "junk in line 2",
                KEY,
                with(1, format!("{}A", lines[1])),
                MODULE,
                Fault::NotASignature,
            ),
            (
                "junk in line 4",
                KEY,
                with(3, format!("{} ", lines[3])),
                MODULE,
                Fault::NotASignature,
            ),
            (
                "the old way",
                KEY,
                SIGNATURE.replace("RUSI", "RWSI"),
                MODULE,
                Fault::NotPrehashed,
            ),
            (
                "no such way",
                KEY,
                SIGNATURE.replace("RUSI", "AASI"),
                MODULE,
                Fault::UnknownAlgorithm,
            ),
            (
                "no first line",
                KEY,
                with(0, "comment: ".into()),
                MODULE,
                Fault::NotASignature,
            ),
        ] {
            assert_eq!(check(key, &signature, module), Err(expected), "{name}");
        }
        assert!(verify(&public_key(KEY).unwrap().0, b"\xff", MODULE).is_err());
    }

    #[test]
    fn names_stand_in_the_reason_as_they_are() {
        assert_eq!(
            Fault::Mismatch.describe(&"/FILE/MODULE.minisig", &"/MODULE/FILE.wasm"),
            "/FILE/MODULE.minisig does not sign /MODULE/FILE.wasm: one of them was changed"
        );
    }

    #[test]
    fn a_signature_cut_short_is_refused_wherever_it_is_cut() {
        for length in 0..SIGNATURE.trim_end().len() {
            assert!(
                check(KEY, &SIGNATURE[..length], MODULE).is_err(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        for text in [
            "",
            "x",
            &KEY[1..],
            &format!("{KEY}A"),
            &KEY.replacen('R', "A", 1),
        ] {
            let reason = public_key(text).expect_err(text);
            assert!(reason.contains("not a minisign public key"), "{reason}");
        }
    }
}
