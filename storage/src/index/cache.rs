//! A cache bounded by bytes: what was not used since it came up for removal goes first (second chance).

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Values that can be found out again, by key.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Every key once, in the order in which they come up for removal.
    order: VecDeque<K>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    used: bool,
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get_mut(key)?;
        entry.used = true;
        Some(&entry.value)
    }

    /// Remembers a value of about so many bytes, unless that is more than a quarter of the cache.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: usize) {
        if bytes > self.bytes_max / 4 {
            return;
        }
        self.bytes += bytes;
        match self.entries.get_mut(&key) {
            Some(entry) => {
                self.bytes -= entry.bytes;
                *entry = Entry { value, bytes, used: true };
            }
            None => {
                self.order.push_back(key.clone());
                self.entries.insert(key, Entry { value, bytes, used: false });
            }
        }
        while self.bytes > self.bytes_max {
            let Some(key) = self.order.pop_front() else {
                return;
            };
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if std::mem::take(&mut entry.used) {
                self.order.push_back(key);
            } else {
                self.bytes -= entry.bytes;
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let mut cache = Cache::new(100);
        for i in 0..1000_u32 {
            cache.insert(i, i, 10);
            assert!(cache.bytes <= 100 && cache.entries.len() == cache.order.len());
            assert_eq!(cache.get(&0), Some(&0));
        }
        assert!(cache.entries.len() <= 10);
        cache.insert(0, 7, 20);
        assert_eq!(cache.get(&0), Some(&7));
        cache.insert(5000, 1, 26);
        assert_eq!(cache.get(&5000), None, "larger than a quarter");
        let counted: usize = cache.entries.values().map(|entry| entry.bytes).sum();
        assert_eq!(counted, cache.bytes);
    }
}
