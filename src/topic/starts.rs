//! A filter over the places of a topic: where may one of the texts inside patterns begin?

use ahash::AHashMap;

/// Which pairs of bytes a text inside may begin with: most places of a topic are ruled out by it.
#[derive(Debug, Default)]
pub(super) struct Starts {
    counts: AHashMap<u16, usize>,
    bits: Vec<u64>,
    single: bool,
}

impl Starts {
    const BITS: usize = 4096;

    /// Counts a text; `single` when it is one byte long.
    pub(super) fn add(&mut self, start: u16, single: bool) {
        *self.counts.entry(start).or_default() += 1;
        if self.bits.is_empty() {
            self.bits = vec![0; Self::BITS / 64];
        }
        self.single |= single;
        self.mark(start);
    }

    /// Takes a text out; `single` when one of one byte is left.
    pub(super) fn remove(&mut self, start: u16, single: bool) {
        self.single = single;
        if let Some(count) = self.counts.get_mut(&start) {
            *count -= 1;
            if *count > 0 {
                return;
            }
        }
        self.counts.remove(&start);
        self.bits.fill(0);
        let starts: Vec<u16> = self.counts.keys().copied().collect();
        starts.into_iter().for_each(|start| self.mark(start));
    }

    fn mark(&mut self, start: u16) {
        let (word, bit) = Self::place(start);
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
    }

    /// Returns the next place at or after `from` where a text inside may begin.
    pub(super) fn next(&self, topic: &[u8], from: usize) -> Option<usize> {
        if self.single {
            return (from < topic.len()).then_some(from);
        }
        topic.get(from..)?.windows(2).position(|pair| self.holds(start_of(pair))).map(|n| from + n)
    }

    /// Whether nothing is left in it.
    #[cfg(test)]
    pub(super) fn is_clear(&self) -> bool {
        self.counts.is_empty() && !self.single && self.bits.iter().all(|word| *word == 0)
    }

    fn holds(&self, start: u16) -> bool {
        let (word, bit) = Self::place(start);
        self.bits.get(word).is_some_and(|word| word & bit != 0)
    }

    fn place(start: u16) -> (usize, u64) {
        let slot = usize::from(start ^ (start >> 5)) % Self::BITS;
        (slot / 64, 1 << (slot % 64))
    }
}

/// Returns the first two bytes of a text.
pub(super) fn start_of(text: &[u8]) -> u16 {
    match text {
        [first, second, ..] => u16::from_be_bytes([*first, *second]),
        [first] => u16::from(*first),
        [] => 0,
    }
}
