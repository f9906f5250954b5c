//! The chunk codec: columns of timestamps and of values as bytes, without loss of a single bit.
//!
//! * [`encode_values`], [`decode_values`] (`values.rs`): a chunk of values. `decimal.rs` makes whole numbers
//!   of them, `ints.rs` makes bytes of those as `plan.rs` chooses, with `bitpack.rs`, `sparse.rs` or `huffman.rs`; `xor.rs` is for
//!   what is left.
//! * [`encode_timestamps`], [`decode_timestamps`] (`timestamps.rs`): a vector of timestamps. It is a unit of
//!   its own, because the series of one scrape share it: a page holds each vector once.
//! * [`encode_histograms`], [`decode_histograms`] (`histograms.rs`): a chunk of native histograms, of columns of
//!   values.
//! * [`HotRun`] (`hot.rs`): the growing run of one series in the head, another format for another need.
//! * `bitio.rs`: bits; `simd.rs`: the inner loops of decoding for processors with AVX2.
//!
//! Invariants: every `f64` and every ascending `i64` comes back bit for bit; equal columns and effort give
//! equal bytes on every machine (whole-number costs, fixed order of choices, IEEE 754 operations only); a
//! decoder given damaged bytes returns `None` or as many samples as the bytes say, at most
//! [`CHUNK_SAMPLES_MAX`], never panics and never reads beyond its bytes. `None` may leave a part in the
//! columns.
//!
//! There is no checksum in here (the blocks of RocksDB have one), no compression across series, and no
//! knowledge of pages, keys or windows. The bytes are described in each module and in
//! `docs/codec-format.md`; `storage/testdata/codec/` has files that every later version must open.

mod bitio;
mod bitpack;
mod decimal;
mod histograms;
mod hot;
mod huffman;
mod ints;
mod plan;
mod simd;
mod sparse;
#[cfg(test)]
mod tests;
mod timestamps;
mod values;
mod xor;

pub(crate) use histograms::{decode_histograms, encode_histograms, is_histograms, next_chunk};
pub(crate) use hot::HotRun;
pub(crate) use timestamps::{decode_timestamps, encode_timestamps, summarize_timestamps};
#[cfg(test)]
use values::decode_values;
pub(crate) use values::{class_name, decode_value_range, encode_values};

/// Most samples of one chunk or timestamp vector. It bounds what a damaged count can allocate.
pub(crate) const CHUNK_SAMPLES_MAX: usize = 65_536;

/// The version in the two high bits of the first byte of each chunk and timestamp vector. Decoders refuse
/// others.
pub(crate) const FORMAT_VERSION: u8 = 1;

/// Where the version is in the first byte.
const VERSION_SHIFT: u32 = 6;

/// How much decoding time a smaller chunk may cost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effort {
    /// Bit-packed and sparse only: for segments that are read and rewritten soon.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "flushes and merges must write the same bytes, for now")
    )]
    Recent,
    /// Huffman codes too where they save a tenth: for day segments.
    Dense,
}

/// Vectors that encoders and decoders use again from chunk to chunk. Its content means nothing between
/// calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    buffers: plan::Buffers,
    numbers: Vec<i64>,
    residuals: Vec<i64>,
    places: Vec<i64>,
    patches: Vec<usize>,
}
