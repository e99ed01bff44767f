//! The digest of a body, as it arrives.
//!
//! White space does not count: relays break lines of over 998 characters anew (RFC 5321, section 4.5.3.1.6), and the
//! e-mail is still the same one.

/// True for what a relay may put in or take out.
pub(crate) fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

/// BLAKE3 over the bytes without white space.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyDigest {
    hash: blake3::Hasher,
    /// The hash is several times as fast on large pieces, and words are small.
    dense: Vec<u8>,
}

impl BodyDigest {
    pub(super) fn update(&mut self, piece: &[u8]) {
        compact(piece, &mut self.dense);
        self.hash.update(&self.dense);
    }

    pub(super) fn finish(&self) -> [u8; 32] {
        *self.hash.finalize().as_bytes()
    }
}

/// The bytes without white space, eight at a time: text has so much of it that a branch for each byte would be guessed
/// wrong.
fn compact(chunk: &[u8], dense: &mut Vec<u8>) {
    dense.clear();
    dense.resize(chunk.len() + 8, 0);
    let (groups, rest) = chunk.as_chunks::<8>();
    let mut length = 0;
    for group in groups {
        let mut word = u64::from_le_bytes(*group);
        let mut spaces = b" \t\r\n".iter().fold(0, |spaces, &space| spaces | matches(word, space));
        let mut left = group.len();
        while spaces != 0 {
            let run = spaces.trailing_zeros() as usize / 8;
            dense[length..length + 8].copy_from_slice(&word.to_le_bytes());
            length += run;
            left -= run + 1;
            word = word >> (8 * run) >> 8;
            spaces = spaces >> (8 * run) >> 8;
        }
        dense[length..length + 8].copy_from_slice(&word.to_le_bytes());
        length += left;
    }
    dense.truncate(length);
    dense.extend(rest.iter().filter(|&&b| !is_space(b)));
}

/// The high bit of each byte of `word` that is `byte`.
fn matches(word: u64, byte: u8) -> u64 {
    const LOW: u64 = u64::MAX / 0xff * 0x7f;
    let different = word ^ (u64::MAX / 0xff * u64::from(byte));
    !(((different & LOW) + LOW) | different | LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_and_everything_else_stays() {
        let mut dense = Vec::new();
        let mut random = fastrand::Rng::with_seed(7);
        for length in 0..200 {
            let few = [b' ', b'\t', b'\r', b'\n', 0, 0x1f, 0x21, 0x7f, 0x80, 0xa0, 0xff, b'a'];
            let bytes: Vec<u8> = (0..length).map(|_| few[random.usize(..few.len())]).collect();
            let expected: Vec<u8> = bytes.iter().copied().filter(|b| !b" \t\r\n".contains(b)).collect();
            compact(&bytes, &mut dense);
            assert_eq!(dense, expected);
        }
    }
}
