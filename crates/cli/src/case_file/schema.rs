//! Which tensors a case may have.

/// What a tensor holds, which decides the types it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// q, k or v.
    Vectors,
    /// Numbers beside them.
    Float,
    /// True or false, or numbers to add.
    Mask,
    /// Lengths, offsets, positions, ids.
    Integer,
    /// Ids of pages or blocks; those past a sequence's length may be anything.
    Table,
}

/// All names, in the order in which error messages list them.
pub(super) const TENSORS: [(&str, Role); 16] = [
    ("q", Role::Vectors),
    ("k", Role::Vectors),
    ("v", Role::Vectors),
    ("mask", Role::Mask),
    ("bias", Role::Float),
    ("sinks", Role::Float),
    ("alibi_slopes", Role::Float),
    ("q_lengths", Role::Integer),
    ("kv_lengths", Role::Integer),
    ("query_start", Role::Integer),
    ("cu_seqlens_q", Role::Integer),
    ("cu_seqlens_k", Role::Integer),
    ("page_table", Role::Table),
    ("lookup_table", Role::Table),
    ("prefix_len", Role::Integer),
    ("document_ids", Role::Integer),
];

/// The table's own name, and the role of a tensor.
pub(super) fn role(name: &str) -> Option<(&'static str, Role)> {
    TENSORS.iter().copied().find(|(known, _)| *known == name)
}

/// All names, for an error message.
pub(super) fn names() -> String {
    TENSORS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
