//! The structs that hosts pass to kernels: written here once, in Rust.
//!
//! `cargo xtask codegen` writes them as C++ (`include/omniflash/parameters.hpp`); hosts fill them and pass them by
//! value. All fields have a fixed width, an address is never a flag: tags say what is present.

use std::fmt::Write as _;

use bytemuck::{Pod, Zeroable};

/// An address in the memory of the device; `void *` in C++.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct DeviceAddress(pub u64);

/// A type that a field of a parameter struct can have.
pub trait ParameterType: Pod {
    /// The C++ name of the type.
    const CPP_NAME: &'static str;
}

macro_rules! parameter_types {
    ($($rust:ty => $cpp:literal),* $(,)?) => {$(
        impl ParameterType for $rust {
            const CPP_NAME: &'static str = $cpp;
        }
    )*};
}
parameter_types! {
    DeviceAddress => "void *",
    i64 => "long long",
    u64 => "unsigned long long",
    i32 => "int",
    u32 => "unsigned",
    f32 => "float",
    Rows => "Rows",
    Indices => "Indices",
    Table => "Table",
    Divisor => "Divisor",
}

/// A field of a parameter struct, as the C++ compiler must see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, the same in both languages.
    pub name: &'static str,
    /// The C++ type.
    pub cpp_type: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// What it holds.
    pub doc: &'static str,
}

/// A parameter struct, as the C++ compiler must see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructLayout {
    /// The name, the same in both languages.
    pub name: &'static str,
    /// What it holds.
    pub doc: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Its fields in order.
    pub fields: &'static [Field],
}

macro_rules! parameter_struct {
    (
        #[doc = $doc:literal]
        pub struct $name:ident { $(#[doc = $field_doc:literal] pub $field:ident: $type:ty,)* }
    ) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name { $(#[doc = $field_doc] pub $field: $type,)* }

        impl $name {
            /// The layout that the C++ side must have.
            pub const LAYOUT: StructLayout = StructLayout {
                name: stringify!($name),
                doc: $doc,
                size: size_of::<$name>(),
                fields: &[$(Field {
                    name: stringify!($field),
                    cpp_type: <$type as ParameterType>::CPP_NAME,
                    offset: std::mem::offset_of!($name, $field),
                    doc: $field_doc,
                },)*],
            };
        }
    };
}

macro_rules! parameter_tag {
    (
        #[doc = $doc:literal]
        pub enum $name:ident { $(#[doc = $value_doc:literal] $value:ident = $number:literal,)* }
    ) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $(#[doc = $value_doc] $value = $number,)* }

        impl $name {
            const CPP_DOC: &'static str = $doc;
            const CPP_VALUES: &'static [(&'static str, u32, &'static str)] =
                &[$((stringify!($value), $number, $value_doc),)*];
        }

        impl From<$name> for u32 {
            fn from(tag: $name) -> u32 {
                tag as u32
            }
        }
    };
}

parameter_tag! {
    /// How the query rows of a sequence are found.
    pub enum QueryForm {
        /// Sequence `b` has `seqlen_q` rows from batch index `b` on.
        Padded = 0,
        /// As `Padded`, but only the first `query_lengths[b]` rows are valid.
        PaddedLengths = 1,
        /// Rows `query_lengths[b]..query_lengths[b + 1]` of the one sequence of rows.
        Ragged = 2,
    }
}

parameter_tag! {
    /// How the keys and values of a sequence are found.
    pub enum KeyForm {
        /// Sequence `b` has `seqlen_k` keys from batch index `b` on.
        Dense = 0,
        /// As `Dense`, but only the first `key_lengths[b]` are valid.
        DenseLengths = 1,
        /// Keys `key_lengths[b]..key_lengths[b + 1]` of the one sequence of keys.
        Ragged = 2,
        /// The first `key_lengths[b]` keys of block `block_table[b]`.
        Continuous = 3,
        /// The first `key_lengths[b]` keys of the pages `block_table[b][0..]`.
        Paged = 4,
    }
}

parameter_tag! {
    /// Where the first query of a sequence stands.
    pub enum StartForm {
        /// At key length minus query length: the last query sees the last key.
        BottomRight = 0,
        /// At `query_start[b]`.
        Given = 1,
    }
}

parameter_tag! {
    /// Whether there are attention sinks, and their type.
    pub enum SinkForm {
        /// No sinks.
        Absent = 0,
        /// f32.
        F32 = 1,
        /// f16.
        F16 = 2,
        /// bf16.
        BF16 = 3,
    }
}

parameter_tag! {
    /// Whether the log-sum-exp is written.
    pub enum LseForm {
        /// It is not.
        Absent = 0,
        /// It is.
        Written = 1,
    }
}

parameter_struct! {
    /// A tensor of vectors: strides in elements between batches (blocks, pages), rows and heads.
    pub struct Rows {
        /// Element 0.
        pub data: DeviceAddress,
        /// Between batches; between blocks or pages of a cache; 0 for ragged tensors.
        pub batch_stride: i64,
        /// Between rows of a sequence, a block or a page.
        pub row_stride: i64,
        /// Between heads.
        pub head_stride: i64,
    }
}

parameter_struct! {
    /// A vector of 32-bit integers or of sinks.
    pub struct Indices {
        /// Element 0.
        pub data: DeviceAddress,
        /// Between elements, in elements.
        pub stride: i64,
    }
}

parameter_struct! {
    /// A matrix of 32-bit integers.
    pub struct Table {
        /// Element 0.
        pub data: DeviceAddress,
        /// Between rows, in elements.
        pub row_stride: i64,
        /// Between columns, in elements.
        pub column_stride: i64,
    }
}

parameter_struct! {
    /// A divisor that is the same in a whole launch, by which the device divides with a product (Granlund and Montgomery 1994, "Division by invariant integers using multiplication").
    pub struct Divisor {
        /// floor(2^(31 + shift) / divisor) + 1.
        pub multiplier: u32,
        /// The least whose power of two is no less than the divisor.
        pub shift: u32,
    }
}

impl Divisor {
    /// What divides numbers below 2^31 by `divisor`, which is below 2^31; by 1 where it is 0.
    pub fn new(divisor: u32) -> Self {
        let divisor = u64::from(divisor.max(1));
        let shift = divisor.next_power_of_two().trailing_zeros();
        if divisor.is_power_of_two() {
            // The most common ones, without a division: a launch has eight divisors.
            return Divisor { multiplier: (1 << 31) + 1, shift };
        }
        Divisor { multiplier: ((1u64 << (31 + shift)) / divisor) as u32 + 1, shift }
    }

    /// `dividend` by the divisor, rounded down, as the device computes it.
    pub fn quotient(self, dividend: u32) -> u32 {
        (((2 * u64::from(dividend)) * u64::from(self.multiplier)) >> 32 >> self.shift) as u32
    }
}

parameter_struct! {
    /// What every attention kernel is given: forward, combine and naive alike.
    pub struct AttentionParameters {
        /// Queries.
        pub q: Rows,
        /// Keys.
        pub k: Rows,
        /// Values.
        pub v: Rows,
        /// Output.
        pub out: Rows,
        /// Log-sum-exp, f32; rows are queries.
        pub lse: Rows,
        /// f32 `[num_partitions, rows, num_heads, value_dim]`; read and written iff num_partitions > 1.
        pub partial_out: DeviceAddress,
        /// f32 `[num_partitions, rows, num_heads]`; read and written iff num_partitions > 1.
        pub partial_lse: DeviceAddress,
        /// u32, all 0 before and after a launch: parts of an item that are done; used by the decode kernel iff it cuts items.
        pub counters: DeviceAddress,
        /// Rows of the query tensor: batch * seqlen_q, or the total of a ragged batch.
        pub total_q: i64,
        /// Lengths `[batch]` or offsets `[batch + 1]` of queries, by `query_form`.
        pub query_lengths: Indices,
        /// Lengths `[batch]` or offsets `[batch + 1]` of keys, by `key_form`.
        pub key_lengths: Indices,
        /// `[batch]`, by `start_form`.
        pub query_start: Indices,
        /// Lookup table `[batch]` or page table `[batch, max_pages]`, by `key_form`.
        pub block_table: Table,
        /// `[num_heads]`, by `sink_form`.
        pub sinks: Indices,
        /// A `QueryForm`.
        pub query_form: u32,
        /// A `KeyForm`.
        pub key_form: u32,
        /// A `StartForm`.
        pub start_form: u32,
        /// A `SinkForm`.
        pub sink_form: u32,
        /// A `LseForm`.
        pub lse_form: u32,
        /// Sequences.
        pub batch: u32,
        /// Query heads.
        pub num_heads: u32,
        /// Query heads that share a key head.
        pub group_size: u32,
        /// Elements of a query or key vector.
        pub head_dim: u32,
        /// Elements of a value vector.
        pub value_dim: u32,
        /// The most query rows of a sequence.
        pub seqlen_q: u32,
        /// The most keys of a sequence.
        pub seqlen_k: u32,
        /// Keys of a page.
        pub page_size: u32,
        /// Query heads whose rows a tile interleaves: 1, or group_size for packed groups.
        pub heads_per_tile: u32,
        /// Tiles of rows of the longest sequence: ceil(seqlen_q * heads_per_tile / block_m).
        pub num_row_tiles: u32,
        /// Pairs of sequence and head tile whose row tiles are interleaved; see the launch rules.
        pub section: u32,
        /// Pieces into which keys are split; 1 for none.
        pub num_partitions: u32,
        /// Blocks, or clusters of them, that share all keys of all sequences evenly in the decode kernel; 0 for num_partitions each.
        pub num_workers: u32,
        /// Sequences with fewer query rows are another launch's; 0 for none. Not for the decode kernel.
        pub least_q_len: u32,
        /// Tiles of heads: num_heads / heads_per_tile.
        pub head_tiles: u32,
        /// Pairs of sequence and head tile: batch * head_tiles.
        pub num_pairs: u32,
        /// By group_size.
        pub by_group_size: Divisor,
        /// By heads_per_tile.
        pub by_heads_per_tile: Divisor,
        /// By head_tiles.
        pub by_head_tiles: Divisor,
        /// By the pairs of a section.
        pub by_section: Divisor,
        /// By those of the last section, which may have fewer.
        pub by_last_section: Divisor,
        /// By the row tiles of a section: section * num_row_tiles.
        pub by_section_tiles: Divisor,
        /// By num_partitions.
        pub by_num_partitions: Divisor,
        /// By page_size.
        pub by_page_size: Divisor,
        /// Multiplies every dot product.
        pub softmax_scale: f32,
    }
}

impl AttentionParameters {
    /// The same with what follows from the other fields: heads and pairs, and the divisors.
    #[must_use]
    pub fn derived(mut self) -> Self {
        self.head_tiles = self.num_heads / self.heads_per_tile.max(1);
        self.num_pairs = self.batch.saturating_mul(self.head_tiles);
        let last_section = match self.num_pairs % self.section.max(1) {
            0 => self.section,
            pairs => pairs,
        };
        self.by_group_size = Divisor::new(self.group_size);
        self.by_heads_per_tile = Divisor::new(self.heads_per_tile);
        self.by_head_tiles = Divisor::new(self.head_tiles);
        self.by_section = Divisor::new(self.section);
        self.by_last_section = Divisor::new(last_section);
        self.by_section_tiles = Divisor::new(self.section.saturating_mul(self.num_row_tiles));
        self.by_num_partitions = Divisor::new(self.num_partitions);
        self.by_page_size = Divisor::new(self.page_size);
        self
    }
}

parameter_struct! {
    /// What the check of page and lookup tables is given.
    pub struct VerifyParameters {
        /// Lookup table `[batch]` or page table `[batch, max_pages]`, by `key_form`.
        pub block_table: Table,
        /// Lengths `[batch]`.
        pub key_lengths: Indices,
        /// u64 `[2]`, set to `u64::MAX` before: the first bad entry `batch index << 32 | page index`, the first sequence with a bad length.
        pub report: DeviceAddress,
        /// A `KeyForm`: `Continuous` or `Paged`.
        pub key_form: u32,
        /// Sequences.
        pub batch: u32,
        /// The most keys of a sequence.
        pub seqlen_k: u32,
        /// Keys of a page.
        pub page_size: u32,
        /// Blocks or pages of the pool.
        pub num_blocks: u32,
        /// Zero.
        pub reserved: u32,
    }
}

parameter_tag! {
    /// What the positions of an append say.
    pub enum AppendForm {
        /// The first new row's.
        Start = 0,
        /// The length with the new rows.
        End = 1,
    }
}

parameter_struct! {
    /// What the writing of new keys and values into a cache is given; vectors and their strides are counted in the units copied, not in elements.
    pub struct KvAppendParameters {
        /// New keys.
        pub new_k: Rows,
        /// New values.
        pub new_v: Rows,
        /// The cache's keys: batches, blocks or pages by `key_form`.
        pub k: Rows,
        /// The cache's values.
        pub v: Rows,
        /// Lengths `[batch]` or offsets `[batch + 1]` of new rows, by `new_form`.
        pub new_lengths: Indices,
        /// `[batch]`, by `append_form`.
        pub positions: Indices,
        /// Lookup table `[batch]` or page table `[batch, max_pages]`, by `key_form`.
        pub block_table: Table,
        /// A `QueryForm`, of the new rows.
        pub new_form: u32,
        /// A `KeyForm`: `Dense`, `Continuous` or `Paged`.
        pub key_form: u32,
        /// An `AppendForm`.
        pub append_form: u32,
        /// Sequences.
        pub batch: u32,
        /// Heads of keys and values.
        pub num_kv_heads: u32,
        /// Units of a key.
        pub key_units: u32,
        /// Units of a value.
        pub value_units: u32,
        /// The most new rows of a sequence.
        pub new_rows: u32,
        /// Positions that a sequence can have.
        pub capacity: u32,
        /// Positions of a page.
        pub page_size: u32,
        /// Batches, blocks or pages of the cache.
        pub num_blocks: u32,
        /// Rows of the tensor of new rows: those of a sequence, or the total of a ragged batch.
        pub total_rows: u32,
    }
}

parameter_struct! {
    /// What the packing of a mask tensor, or of documents' ids, is given, beside the parameters of all kernels; strides count elements and are 0 where the tensor repeats itself.
    pub struct PackMaskParameters {
        /// The tensor.
        pub data: DeviceAddress,
        /// From a sequence to the next.
        pub batch_stride: i64,
        /// From a head to the next.
        pub head_stride: i64,
        /// From a row to the next.
        pub row_stride: i64,
        /// From a key to the next.
        pub key_stride: i64,
        /// `SeenBlocks` `[batches, heads, row_blocks, spans]`, to be written.
        pub blocks: DeviceAddress,
        /// Words `[batches, heads, rows, row_words]`, to be written; of bools only.
        pub bits: DeviceAddress,
        /// The position of row 0 of each sequence, to be written.
        pub starts: DeviceAddress,
        /// Different sequences of the tensor: 1 or all.
        pub batches: u32,
        /// Different heads.
        pub heads: u32,
        /// Different rows.
        pub rows: u32,
        /// Keys of a row.
        pub keys: u32,
        /// Blocks of rows.
        pub row_blocks: u32,
        /// Spans of keys, of 32 blocks each.
        pub spans: u32,
        /// Words of bits of a row.
        pub row_words: u32,
        /// Positions that have ids; of documents only.
        pub columns: u32,
    }
}

/// All parameter structs, those that others contain first.
pub const STRUCTS: &[StructLayout] = &[
    Rows::LAYOUT,
    Indices::LAYOUT,
    Table::LAYOUT,
    Divisor::LAYOUT,
    AttentionParameters::LAYOUT,
    VerifyParameters::LAYOUT,
    KvAppendParameters::LAYOUT,
    PackMaskParameters::LAYOUT,
];

type TagLayout = (&'static str, &'static str, &'static [(&'static str, u32, &'static str)]);

const TAGS: &[TagLayout] = &[
    ("QueryForm", QueryForm::CPP_DOC, QueryForm::CPP_VALUES),
    ("KeyForm", KeyForm::CPP_DOC, KeyForm::CPP_VALUES),
    ("StartForm", StartForm::CPP_DOC, StartForm::CPP_VALUES),
    ("SinkForm", SinkForm::CPP_DOC, SinkForm::CPP_VALUES),
    ("LseForm", LseForm::CPP_DOC, LseForm::CPP_VALUES),
    ("AppendForm", AppendForm::CPP_DOC, AppendForm::CPP_VALUES),
];

/// The text of `parameters.hpp`.
pub fn cpp_header() -> String {
    let mut text = String::from(
        "// The structs that hosts pass to kernels. Generated by `cargo xtask codegen` from\n\
         // crates/device/src/parameters.rs: change them there.\n#pragma once\n\n\
         #include \"omniflash/arch.hpp\"\n\nnamespace omniflash {\n",
    );
    for (name, doc, values) in TAGS {
        let _ = writeln!(text, "\n//{doc}\nenum class {name} : unsigned {{");
        for (value, number, doc) in *values {
            let _ = writeln!(text, "  //{doc}\n  {value} = {number},");
        }
        text.push_str("};\n");
    }
    for layout in STRUCTS {
        let _ = writeln!(text, "\n//{}\nstruct {} {{", layout.doc, layout.name);
        for field in layout.fields {
            let space = if field.cpp_type.ends_with('*') { "" } else { " " };
            let _ = writeln!(text, "  //{}\n  {}{space}{};", field.doc, field.cpp_type, field.name);
        }
        text.push_str("};\n");
        let _ = writeln!(text, "static_assert(sizeof({}) == {});", layout.name, layout.size);
        for field in layout.fields {
            let _ =
                writeln!(text, "OMNIFLASH_CHECK_OFFSET({}, {}, {});", layout.name, field.name, field.offset);
        }
    }
    text.push_str("\n}  // namespace omniflash\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_in_the_tree_is_current() {
        assert_eq!(
            include_str!("../include/omniflash/parameters.hpp"),
            cpp_header(),
            "run `cargo xtask codegen`"
        );
    }

    #[test]
    fn a_product_divides_like_a_division() {
        let most = i32::MAX as u32;
        let powers = (0..31).map(|power| 1u32 << power);
        let divisors =
            powers.flat_map(|power| [power.max(2) - 1, power, power + 1]).chain([7, 641, 1_000_003, most]);
        for divisor in divisors.filter(|&divisor| divisor <= most) {
            let by = Divisor::new(divisor);
            // Where a quotient that is a little off would show: beside multiples of the divisor, the largest among them.
            let multiples = [0, 1, 2, most / divisor / 2, most / divisor].map(|quotient| quotient * divisor);
            let dividends = multiples.into_iter().flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)]);
            for dividend in dividends.chain([most - 1, most]).filter(|&dividend| dividend <= most) {
                assert_eq!(by.quotient(dividend), dividend / divisor, "{dividend} / {divisor}");
            }
        }
        assert_eq!(Divisor::new(0), Divisor::new(1));
    }

    #[test]
    fn no_struct_has_padding_that_the_device_could_lay_out_otherwise() {
        for layout in STRUCTS {
            let alignment = 8;
            assert_eq!(layout.size % alignment, 0, "{}", layout.name);
        }
    }
}
