//! `signature`: who must have signed a module, in minisign's format (jedisct1.github.io/minisign, "signature format").
//!
//! Only prehashed signatures count, which minisign has made by default since 0.10, and only a file that is nothing but a signature: four
//! lines. Its trusted comment is part of what is signed.

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
        match verify(&key, &bytes, &module.bytes) {
            Ok(()) => Some(Self {
                minisign_public_key,
                file,
            }),
            Err(reason) => {
                let name = file.display().to_string();
                file_field.refuse(
                    reason
                        .replace("FILE", &name)
                        .replace("MODULE", &module.source.to_string()),
                );
                None
            }
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

/// Why not, with `FILE` for the signature's file and `MODULE` for the module.
fn verify(key: &PublicKey, signature: &[u8], module: &[u8]) -> Result<(), &'static str> {
    let not_one = "FILE is not a minisign signature: four lines, the first begins with `untrusted comment: `, the third with `trusted comment: `";
    let text = std::str::from_utf8(signature).map_err(|_| not_one)?;
    let is_whole = text.lines().count() == 4 && text.starts_with("untrusted comment: ");
    if !is_whole {
        return Err(not_one);
    }
    let signature = Signature::decode(text).map_err(|error| match error {
        Error::UnsupportedAlgorithm => "FILE is signed with an algorithm that is not known",
        _ => not_one,
    })?;
    key.verify(module, &signature, false)
        .map_err(|error| match error {
            Error::UnexpectedKeyId => "FILE was made with another key than `minisign_public_key`",
            Error::UnexpectedAlgorithm => {
                "FILE is signed the old way, without hashing first: sign the module again with minisign 0.10 or later"
            }
            _ => "FILE does not sign MODULE: one of them was changed",
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

    fn check(key: &str, signature: &str, module: &[u8]) -> Result<(), &'static str> {
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
                "another key",
            ),
            (
                "another key of the same id",
                &borrowed,
                SIGNATURE.to_owned(),
                MODULE,
                "was changed",
            ),
            (
                "another module",
                KEY,
                SIGNATURE.to_owned(),
                b"\0asm\x01\0\0\x01",
                "was changed",
            ),
            (
                "a longer module",
                KEY,
                SIGNATURE.to_owned(),
                b"\0asm\x01\0\0\0\0",
                "was changed",
            ),
            (
                "another comment",
                KEY,
                SIGNATURE.replace("an empty", "a full"),
                MODULE,
                "was changed",
            ),
            (
                "junk behind",
                KEY,
                format!("{SIGNATURE}\n"),
                MODULE,
                "not a minisign signature",
            ),
            (
                "a line behind",
                KEY,
                format!("{SIGNATURE}x"),
                MODULE,
                "not a minisign signature",
            ),
            (
                "junk in line 2",
                KEY,
                with(1, format!("{}A", lines[1])),
                MODULE,
                "not a minisign signature",
            ),
            (
                "junk in line 4",
                KEY,
                with(3, format!("{} ", lines[3])),
                MODULE,
                "not a minisign signature",
            ),
            (
                "the old way",
                KEY,
                SIGNATURE.replace("RUSI", "RWSI"),
                MODULE,
                "the old way",
            ),
            (
                "no such way",
                KEY,
                SIGNATURE.replace("RUSI", "AASI"),
                MODULE,
                "not known",
            ),
            (
                "no first line",
                KEY,
                with(0, "comment: ".into()),
                MODULE,
                "not a minisign signature",
            ),
        ] {
            let reason = check(key, &signature, module).expect_err(name);
            assert!(reason.contains(expected), "{name}: {reason}");
        }
        assert!(verify(&public_key(KEY).unwrap().0, b"\xff", MODULE).is_err());
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
