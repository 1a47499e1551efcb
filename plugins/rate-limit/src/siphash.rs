//! SipHash-2-4 with 128 bits of output: a short keyed hash whose collisions nobody without the key can look for.
//!
//! Written out because the standard library offers 64 bits only, and no way to choose the key. Source: Aumasson and
//! Bernstein, "SipHash: a fast short-input PRF"; the 128-bit variant and its vectors from the authors' reference
//! code.

/// The key, as two little-endian words.
#[derive(Clone, Copy)]
pub(crate) struct SipKey(u64, u64);

impl SipKey {
    /// From 16 bytes.
    pub(crate) fn new(bytes: [u8; 16]) -> Self {
        let word = u128::from_le_bytes(bytes);
        Self(low(word), low(word >> 64))
    }

    /// The two words of the hash.
    pub(crate) fn hash(self, text: &[u8]) -> (u64, u64) {
        let mut v = State {
            a: self.0 ^ 0x736f_6d65_7073_6575,
            b: self.1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            c: self.0 ^ 0x6c79_6765_6e65_7261,
            d: self.1 ^ 0x7465_6462_7974_6573,
        };
        let (words, rest) = text.as_chunks::<8>();
        for word in words {
            v.absorb(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        v.absorb(u64::from_le_bytes(last) | ((text.len() as u64) << 56));
        v.c ^= 0xee;
        let first = v.squeeze();
        v.b ^= 0xdd;
        (first, v.squeeze())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is asked for"
)]
fn low(word: u128) -> u64 {
    word as u64
}

struct State {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
}

impl State {
    fn round(&mut self) {
        self.a = self.a.wrapping_add(self.b);
        self.b = self.b.rotate_left(13) ^ self.a;
        self.a = self.a.rotate_left(32);
        self.c = self.c.wrapping_add(self.d);
        self.d = self.d.rotate_left(16) ^ self.c;
        self.a = self.a.wrapping_add(self.d);
        self.d = self.d.rotate_left(21) ^ self.a;
        self.c = self.c.wrapping_add(self.b);
        self.b = self.b.rotate_left(17) ^ self.c;
        self.c = self.c.rotate_left(32);
    }

    fn absorb(&mut self, word: u64) {
        self.d ^= word;
        self.round();
        self.round();
        self.a ^= word;
    }

    fn squeeze(&mut self) -> u64 {
        for _ in 0..4 {
            self.round();
        }
        self.a ^ self.b ^ self.c ^ self.d
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference vectors: key 00 … 0f, text 00 01 … of each length.
    #[test]
    fn reference_vectors() {
        let vectors = [
            (0, "a3817f04ba25a8e66df67214c7550293"),
            (1, "da87c1d86b99af44347659119b22fc45"),
            (7, "a1f1ebbed8dbc153c0b84aa61ff08239"),
            (8, "3b62a9ba6258f5610f83e264f31497b4"),
            (15, "5493e99933b0a8117e08ec0f97cfc3d9"),
            (16, "6ee2a4ca67b054bbfd3315bf85230577"),
            (63, "5150d1772f50834a503e069a973fbd7c"),
        ];
        let key = SipKey::new(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100_u128.to_le_bytes());
        for (length, expected) in vectors {
            let text: Vec<u8> = (0..length).collect();
            let (first, second) = key.hash(&text);
            let hex: String = [first.to_le_bytes(), second.to_le_bytes()]
                .concat()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(hex, expected, "length {length}");
        }
    }
}
