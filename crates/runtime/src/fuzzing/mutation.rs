//! Damage to an input, the same for the same number.

/// Words that lengths and counts are wrong by.
const WORDS: [u32; 10] = [0, 1, 3, 4, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, 0xffff_ffff];

/// A source of damage.
pub struct Mutator(u64);

impl Mutator {
    /// Of this number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A seed with one to four damages.
    pub fn damage(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds.get(self.below(seeds.len())).cloned().unwrap_or_default();
        for _ in 0..=self.below(4) {
            self.once(&mut input, seeds);
        }
        input
    }

    fn once(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len());
        let end = (at + 1 + self.below(64)).min(input.len());
        match self.below(8) {
            0 => input.truncate(at),
            1 => {
                input.drain(at..end);
            }
            2 => {
                let again = input.get(at..end).unwrap_or_default().to_vec();
                input.splice(at..at, again);
            }
            3 => {
                let other = seeds.get(self.below(seeds.len())).map(Vec::as_slice).unwrap_or_default();
                let from = self.below(other.len());
                input.splice(at.., other.get(from..).unwrap_or_default().to_vec());
            }
            4 => {
                let bytes: Vec<u8> = (0..self.below(16)).map(|_| self.next() as u8).collect();
                input.splice(at..at, bytes);
            }
            5 => {
                let word = WORDS[self.below(WORDS.len())].to_be_bytes();
                for (byte, wrong) in input.iter_mut().skip(at & !3).zip(word) {
                    *byte = wrong;
                }
            }
            6 => {
                let byte = self.next() as u8;
                input.iter_mut().skip(at).take(1).for_each(|there| *there = byte);
            }
            _ => {
                let bit = 1 << self.below(8);
                input.iter_mut().skip(at).take(1).for_each(|there| *there ^= bit);
            }
        }
    }
}
