//! What a verb draws, kept: one that is run again, since somebody had to be asked first, comes to the same object.

use super::Env;

/// What was drawn, and how much of it this run has drawn.
#[derive(Default)]
pub struct Tape {
    drawn: Vec<u8>,
    at: usize,
}

impl Tape {
    /// A run begins.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// Fills a buffer as the runs before did, else with what nobody can guess.
    pub fn fill(&mut self, env: &Env, bytes: &mut [u8]) {
        let (from, to) = (self.at, self.at + bytes.len());
        let known = self.drawn.len();
        if known < to {
            self.drawn.resize(to, 0);
            if let Some(fresh) = self.drawn.get_mut(known..) {
                (env.random)(fresh);
            }
        }
        if let Some(drawn) = self.drawn.get(from..to) {
            bytes.copy_from_slice(drawn);
        }
        self.at = to;
    }
}
