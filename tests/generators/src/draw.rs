//! Bytes as choices. Every choice has a plain first alternative, which is taken when the bytes are used up: an empty input
//! is a plain valid one, and generation always ends.

use arbitrary::Unstructured;

/// Texts that have broken parsers, paths, logs or templates somewhere.
const TEXTS: &[&str] = &[
    "a",
    "",
    "hello world",
    "\0",
    "a\r\nb: c",
    "../../etc/passwd",
    "é𝒳\u{202e}\u{feff}",
    "{{ name }}",
    "{% for a in b %}",
    "<|im_start|>system\n<|im_end|>",
    "%ff%00",
    "\u{fffd}\u{10ffff}",
    "null",
    "-1",
    "NaN",
    "file:///a/../b",
    "data: [DONE]\n\n",
];

/// Numbers at the edges of what JSON, f32, f64, u32, u64 and i64 hold, and some that are not JSON.
const NUMBERS: &[&str] = &[
    "1",
    "0",
    "2",
    "0.5",
    "-1",
    "-0.0",
    "1.0",
    "3",
    "16",
    "20",
    "256",
    "4096",
    "65536",
    "1e-45",
    "1e-400",
    "3.5e38",
    "1e308",
    "1e309",
    "-1e309",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999999999",
    "0.1e1",
    "01",
    "1.",
    "+1",
    "0x10",
    "NaN",
    "Infinity",
    "-",
];

/// A source of choices.
#[derive(Debug)]
pub struct Draw<'a>(Unstructured<'a>);

impl<'a> Draw<'a> {
    /// From these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether every further choice is the plain one.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.0.is_empty()
    }

    /// A number in `0 .. count`; 0 if `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        self.0.int_in_range(0..=count.saturating_sub(1)).unwrap_or_default()
    }

    /// True once in so many times, and never when the bytes are used up.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) + 1 == times && times > 1
    }

    /// One of these; the first is the plain one.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = self.below(from.len());
        from[index].clone()
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Up to so many bytes as they come.
    pub fn bytes(&mut self, bytes_max: usize) -> Vec<u8> {
        let bytes = self.below(bytes_max.min(self.0.len()) + 1);
        self.0.bytes(bytes).map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// What is left.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }

    /// A text: known to be trouble, long, or of any characters.
    pub fn text(&mut self) -> String {
        match self.below(8) {
            0..=4 => self.pick(TEXTS).to_owned(),
            5 => self.pick(TEXTS).repeat(1 << self.below(10)),
            _ => String::from_utf8_lossy(&self.bytes(48)).into_owned(),
        }
    }

    /// A number as it is written in JSON, or nearly so.
    pub fn number(&mut self) -> String {
        match self.below(8) {
            0..=5 => self.pick(NUMBERS).to_owned(),
            6 => (self.bits().cast_signed()).to_string(),
            _ => f64::from_bits(self.bits()).to_string(),
        }
    }

    /// A floating-point number: near what is usual, at an edge, or of any bits.
    pub fn float(&mut self) -> f32 {
        const EDGES: [f32; 12] = [
            1.0,
            0.0,
            -0.0,
            0.5,
            -1.0,
            2.0,
            16.0,
            100.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MIN_POSITIVE,
        ];
        match self.below(4) {
            0 | 1 => self.pick(&EDGES),
            2 => self.below(4001) as f32 / 1000.0 - 2.0,
            _ => f32::from_bits(self.bits() as u32),
        }
    }

    /// A count: small, around an edge, or any.
    pub fn count(&mut self) -> u32 {
        match self.below(6) {
            0..=2 => self.below(8) as u32,
            3 => self.below(5000) as u32,
            4 => self.pick(&[u32::MAX, 1 << 31, 1 << 16, 4096, 4097, 0]),
            _ => self.bits() as u32,
        }
    }

    /// Sometimes a value.
    pub fn maybe<T>(&mut self, times: usize, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(times).then(|| value(self))
    }

    /// Flips, cuts, repeats or inserts some bytes.
    pub fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(6) {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (self.0.arbitrary::<u8>().unwrap_or_default() % 8);
                    }
                }
                1 => bytes.truncate(at),
                2 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.pick(b"\0\xff\"{}[],:\\\n \x80");
                    }
                }
                3 => {
                    let end = (at + self.below(32)).min(bytes.len());
                    bytes.drain(at..end);
                }
                4 => {
                    let end = (at + self.below(32)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
                _ => {
                    let insert = self.bytes(16);
                    bytes.splice(at..at, insert);
                }
            }
        }
    }
}

/// So many bytes that a seed stands for (SplitMix64).
#[must_use]
pub fn seeded_bytes(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_bytes_every_choice_is_the_plain_one() {
        let mut draw = Draw::new(&[]);
        assert_eq!((draw.below(9), draw.one_in(2), draw.pick(&[7, 8]), draw.bits()), (0, false, 7, 0));
        assert_eq!((draw.text(), draw.number(), draw.float(), draw.count()), ("a".into(), "1".into(), 1.0, 0));
    }

    #[test]
    fn a_seed_stands_for_its_bytes() {
        assert_eq!(seeded_bytes(1, 20), seeded_bytes(1, 30)[..20]);
        assert_ne!(seeded_bytes(1, 8), seeded_bytes(2, 8));
        // Published for SplitMix64 seeded with 0.
        assert_eq!(seeded_bytes(0, 8), 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
    }

    #[test]
    fn damage_keeps_within_its_bytes() {
        for seed in 0..2000 {
            let choices = seeded_bytes(seed, 40);
            let mut bytes = b"{\"a\": [1, 2]}".to_vec();
            Draw::new(&choices).damage(&mut bytes);
            assert!(bytes.len() < 200);
        }
    }
}
