//! A set of small numbers: the samples of a shard, or parts of them.

/// Which numbers are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.word(index / 64) & 1 << (index % 64) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.put_words(0, &other.0);
    }

    pub(crate) fn remove(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// The numbers of a range.
    pub(crate) fn of(range: std::ops::Range<usize>) -> Self {
        let mut bits = Self::default();
        range.for_each(|index| bits.insert(index));
        bits
    }

    /// The first number that is in both.
    pub(crate) fn first_shared(&self, other: &Self) -> Option<usize> {
        let shared = self.0.iter().zip(&other.0).map(|(mine, theirs)| mine & theirs).enumerate();
        let mut shared = shared.filter(|(_, word)| *word != 0);
        shared.next().map(|(at, word)| at * 64 + word.trailing_zeros() as usize)
    }

    /// Some 64 numbers, as a word.
    pub(crate) fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or_default()
    }

    /// Words from one on, at most so many.
    pub(crate) fn words(&self, from: usize, most: usize) -> Vec<u64> {
        self.0.iter().skip(from).take(most).copied().collect()
    }

    /// Adds what is in words.
    pub(crate) fn put_words(&mut self, from: usize, words: &[u64]) {
        if self.0.len() < from + words.len() {
            self.0.resize(from + words.len(), 0);
        }
        for (mine, word) in self.0[from..].iter_mut().zip(words) {
            *mine |= word;
        }
    }

    pub(crate) fn word_count(&self) -> usize {
        self.0.len()
    }

    /// The first number of this that is in none of the others.
    pub(crate) fn first_missing_in(&self, others: &[&Self]) -> Option<usize> {
        self.0.iter().enumerate().find_map(|(at, word)| {
            let rest = others.iter().fold(*word, |rest, other| rest & !other.word(at));
            (rest != 0).then(|| at * 64 + rest.trailing_zeros() as usize)
        })
    }
}
