//! What is known of the series in memory, by ordinal: tenant, fingerprint, label pairs.
//!
//! Series arrive target by target, so a series usually shares most pairs with the one before it. Records
//! are kept in blocks of up to 32, each record as its difference to the one before:
//!
//! | field | bytes | content |
//! |---|---|---|
//! | step | varint | ordinal minus the one before (minus the block's first) |
//! | shape | 1 | 0: tenant, number of pairs and place of the metric's name as before; 1: they follow |
//! | tenant, pairs, place | varint each | if they differ; the place counts from 1, 0 is none |
//! | changed | (pairs + 7) / 8 | bit i: pair i is not the one before |
//! | pairs | varint each | those that changed |
//! | fingerprint | 16 | |
//!
//! This lives in memory only.

use roaring::RoaringBitmap;
use saturn_model::Fingerprint;

use super::symbols::PairId;
use crate::wire::{Reader, put_varint};

/// Records of a block: a look-up reads half of them.
const BLOCK_RECORDS: usize = 32;

/// One series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) ordinal: u32,
    /// Position of the tenant in the shard.
    pub(crate) tenant: u32,
    pub(crate) fingerprint: u128,
    /// Where among `pairs` the metric's name is.
    pub(crate) metric: Option<u32>,
    /// In the order of the labels.
    pub(crate) pairs: Vec<PairId>,
}

impl Record {
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.fingerprint)
    }
}

/// All records of a shard, ascending by ordinal.
#[derive(Debug, Default)]
pub(crate) struct Records {
    blocks: Vec<Block>,
    /// The last record.
    last: Record,
    len: usize,
}

#[derive(Debug)]
struct Block {
    first: u32,
    records: u8,
    bytes: Vec<u8>,
}

impl Block {
    fn new(first: u32) -> Self {
        Self { first, records: 0, bytes: Vec::new() }
    }
}

impl Records {
    /// Adds a record. Its ordinal is above all others.
    pub(crate) fn push(&mut self, record: &Record) {
        assert!(self.len == 0 || record.ordinal > self.last.ordinal, "ordinals ascend");
        match self.blocks.last_mut() {
            Some(block) if usize::from(block.records) < BLOCK_RECORDS => {
                encode(&mut block.bytes, &self.last, record);
                block.records += 1;
                if usize::from(block.records) == BLOCK_RECORDS {
                    block.bytes.shrink_to_fit();
                }
            }
            _ => {
                let mut block = Block::new(record.ordinal);
                encode(&mut block.bytes, &before(record.ordinal), record);
                block.records = 1;
                self.blocks.push(block);
            }
        }
        self.last.clone_from(record);
        self.len += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A cursor, for look-ups that ascend.
    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor { records: self, block: usize::MAX, reader: Reader::new(&[]), record: Record::default() }
    }

    /// All of them, ascending.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Record)) {
        for block in &self.blocks {
            block.for_each(&mut each);
        }
    }

    /// Takes out those of `gone`, and gives each to `each`.
    pub(crate) fn remove(&mut self, gone: &RoaringBitmap, mut each: impl FnMut(&Record)) {
        let mut kept: Vec<Record> = Vec::with_capacity(BLOCK_RECORDS);
        for at in 0..self.blocks.len() {
            let end = self.blocks.get(at + 1).map_or(u32::MAX, |next| next.first - 1);
            let block = &mut self.blocks[at];
            if gone.range_cardinality(block.first..=end) == 0 {
                continue;
            }
            kept.clear();
            block.for_each(&mut |record| {
                if gone.contains(record.ordinal) {
                    each(record);
                } else {
                    kept.push(record.clone());
                }
            });
            self.len -= usize::from(block.records) - kept.len();
            *block = Block::of(&kept);
        }
        self.blocks.retain(|block| block.records > 0);
        if self.blocks.len() > 2 * self.len.div_ceil(BLOCK_RECORDS) {
            let sparse = std::mem::take(self);
            sparse.for_each(|record| self.push(record));
        }
        self.blocks.shrink_to_fit();
        self.last = Record::default();
        if let Some(block) = self.blocks.last() {
            block.for_each(&mut |record| self.last.clone_from(record));
        }
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes.capacity()).sum();
        blocks + self.blocks.capacity() * size_of::<Block>()
    }
}

impl Block {
    fn of(records: &[Record]) -> Self {
        let Some(first) = records.first() else {
            return Self::new(0);
        };
        let start = before(first.ordinal);
        let mut block = Self::new(first.ordinal);
        let mut last = &start;
        for record in records {
            encode(&mut block.bytes, last, record);
            block.records += 1;
            last = record;
        }
        block.bytes.shrink_to_fit();
        block
    }

    fn for_each(&self, each: &mut impl FnMut(&Record)) {
        let mut reader = Reader::new(&self.bytes);
        let mut record = before(self.first);
        while !reader.is_empty() {
            decode(&mut reader, &mut record).expect("a block that was written here");
            each(&record);
        }
    }
}

/// What the first record of a block differs from.
fn before(first: u32) -> Record {
    Record { ordinal: first, ..Record::default() }
}

fn encode(out: &mut Vec<u8>, last: &Record, record: &Record) {
    put_varint(out, u64::from(record.ordinal - last.ordinal));
    let shape = |r: &Record| (r.tenant, r.pairs.len(), r.metric);
    if shape(last) == shape(record) {
        out.push(0);
    } else {
        out.push(1);
        put_varint(out, u64::from(record.tenant));
        put_varint(out, record.pairs.len() as u64);
        put_varint(out, record.metric.map_or(0, |at| u64::from(at) + 1));
    }
    let changed = |at: usize| last.pairs.get(at) != Some(&record.pairs[at]);
    for group in (0..record.pairs.len()).step_by(8) {
        let bits = group..record.pairs.len().min(group + 8);
        out.push(bits.filter(|at| changed(*at)).fold(0, |byte, at| byte | 1 << (at - group)));
    }
    for (at, pair) in record.pairs.iter().enumerate() {
        if changed(at) {
            put_varint(out, u64::from(*pair));
        }
    }
    out.extend_from_slice(&record.fingerprint.to_le_bytes());
}

/// Changes the record before into the next one.
fn decode(reader: &mut Reader<'_>, record: &mut Record) -> Option<()> {
    record.ordinal = record.ordinal.checked_add(u32::try_from(reader.varint()?).ok()?)?;
    if reader.u8()? != 0 {
        record.tenant = u32::try_from(reader.varint()?).ok()?;
        record.pairs.resize(usize::try_from(reader.varint()?).ok()?, 0);
        record.metric = u32::try_from(reader.varint()?).ok()?.checked_sub(1);
    }
    let changed = reader.take(record.pairs.len().div_ceil(8))?;
    for (group, byte) in record.pairs.chunks_mut(8).zip(changed) {
        let mut bits = *byte;
        while bits != 0 {
            *group.get_mut(bits.trailing_zeros() as usize)? = u32::try_from(reader.varint()?).ok()?;
            bits &= bits - 1;
        }
    }
    record.fingerprint = u128::from_le_bytes(reader.array()?);
    Some(())
}

/// Looks records up. Ascending look-ups read every block once.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    records: &'a Records,
    block: usize,
    reader: Reader<'a>,
    record: Record,
}

impl Cursor<'_> {
    /// The record of this series, if there is one.
    pub(crate) fn find(&mut self, ordinal: u32) -> Option<&Record> {
        let blocks = &self.records.blocks;
        let here = blocks.get(self.block).is_some_and(|block| {
            block.first <= ordinal && blocks.get(self.block + 1).is_none_or(|next| ordinal < next.first)
        });
        if !here || self.record.ordinal > ordinal {
            self.block = blocks.partition_point(|block| block.first <= ordinal).checked_sub(1)?;
            self.reader = Reader::new(&blocks[self.block].bytes);
            self.record.pairs.clear();
            self.record =
                Record { pairs: std::mem::take(&mut self.record.pairs), ..before(blocks[self.block].first) };
            self.step()?;
        }
        while self.record.ordinal < ordinal {
            self.step()?;
        }
        (self.record.ordinal == ordinal).then_some(&self.record)
    }

    fn step(&mut self) -> Option<()> {
        if self.reader.is_empty() {
            return None;
        }
        decode(&mut self.reader, &mut self.record).expect("a block that was written here");
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = (u32, Record)> {
        let pairs = proptest::collection::vec(prop_oneof![0..4_u32, any::<u32>()], 0..20);
        let rest = (0..3_u32, any::<u128>(), proptest::option::of(0..20_u32), pairs);
        (1..5_u32, rest).prop_map(|(step, (tenant, fingerprint, metric, pairs))| {
            (step, Record { ordinal: 0, tenant, fingerprint, metric, pairs })
        })
    }

    proptest! {
        #[test]
        fn records_are_a_map(
            new in proptest::collection::vec(record(), 0..200),
            more in proptest::collection::vec(record(), 0..40),
            gone in proptest::collection::btree_set(0..600_u32, 0..300),
        ) {
            let mut records = Records::default();
            let mut model: Vec<Record> = Vec::new();
            let mut ordinal = 0;
            let mut push = |records: &mut Records, model: &mut Vec<Record>, new: Vec<(u32, Record)>| {
                for (step, record) in new {
                    ordinal += step;
                    let record = Record { ordinal, ..record };
                    records.push(&record);
                    model.push(record);
                }
            };
            push(&mut records, &mut model, new);
            let gone: RoaringBitmap = gone.into_iter().collect();
            let mut removed = Vec::new();
            records.remove(&gone, |record| removed.push(record.clone()));
            let (want, kept): (Vec<Record>, Vec<Record>) =
                model.into_iter().partition(|record| gone.contains(record.ordinal));
            prop_assert_eq!(removed, want);
            let mut model = kept;
            push(&mut records, &mut model, more);
            prop_assert_eq!(records.len(), model.len());
            let mut all = Vec::new();
            records.for_each(|record| all.push(record.clone()));
            prop_assert_eq!(&all, &model);
            let mut cursor = records.cursor();
            for ordinal in (0..1200).chain((0..1200).rev().step_by(7)) {
                let want = model.iter().find(|record| record.ordinal == ordinal);
                prop_assert_eq!(cursor.find(ordinal), want);
            }
        }
    }
}
