//! What a case's name says.

/// The short names of `benches/peers/cpu`, and those that all other systems give the same cases.
pub(crate) const SHORT: [(&str, &str); 11] = [
    ("p512_d64", "B1_S512_H8_8_D64_full"),
    ("p512_d64_c", "B1_S512_H8_8_D64_causal"),
    ("p2048_d64", "B1_S2048_H8_8_D64_full"),
    ("p2048_d64_c", "B1_S2048_H8_8_D64_causal"),
    ("p2048_d128", "B1_S2048_H16_16_D128_full"),
    ("p2048_d128_c", "B1_S2048_H16_16_D128_causal"),
    ("p4096_d128", "B1_S4096_H32_32_D128_full"),
    ("p4096_d128_c", "B1_S4096_H32_32_D128_causal"),
    ("gqa2048_d128_c", "B1_S2048_H32_8_D128_causal"),
    ("dec4k", "dec_B1_H32_8_D128_KV4096"),
    ("dec32k", "dec_B1_H32_8_D128_KV32768"),
];

/// The long name of a case; itself where it has no short one.
pub(crate) fn long(name: &str) -> &str {
    SHORT.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long)
}

/// The sizes in a name such as `B4_S4096_H16_16_D128_causal` or `dec_B1_H32_8_D128_KV32768_page64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaseName {
    pub(crate) batch: usize,
    /// 1 where it is a decode case.
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// What stands behind the sizes: `full`, `causal`, `page64`; empty for a plain decode case.
    pub(crate) form: String,
    /// One query row a sequence.
    pub(crate) is_decode: bool,
    /// Sequences of different lengths, of which S is the longest.
    pub(crate) is_ragged: bool,
}

impl CaseName {
    /// Reads a name; `None` for one that has no sizes.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (is_decode, rest) = match name.strip_prefix("dec_") {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (is_ragged, rest) = match rest.strip_prefix("var_") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let (mut batch, mut heads, mut kv_heads, mut dim, mut q, mut k) =
            (None, None, None, None, None, None);
        let mut form = Vec::new();
        let mut after = ' ';
        for part in rest.split('_') {
            let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
            let (name, number) = (&part[..digits], part[digits..].parse::<usize>().ok());
            let slot = match (name, number) {
                ("B", Some(_)) => &mut batch,
                ("H", Some(_)) => &mut heads,
                ("D", Some(_)) => &mut dim,
                ("S", Some(_)) => &mut q,
                ("KV", Some(_)) => &mut k,
                ("", Some(_)) if after == 'H' => &mut kv_heads,
                ("", Some(_)) if after == 'S' => &mut k,
                _ => {
                    form.push(part);
                    continue;
                }
            };
            *slot = number;
            after = name.chars().next().unwrap_or(' ');
        }
        Some(CaseName {
            batch: batch?,
            seqlen_q: if is_decode { 1 } else { q? },
            seqlen_k: k.or(q)?,
            num_heads: heads?,
            num_kv_heads: kv_heads?,
            head_dim: dim?,
            form: form.join("_"),
            is_decode,
            is_ragged,
        })
    }

    /// Multiplications and additions, every key visible, halved for causal.
    pub(crate) fn operations(&self) -> f64 {
        let visible = if self.form == "causal" { 0.5 } else { 1.0 };
        let scores = (self.batch * self.num_heads * self.seqlen_q) as f64 * self.seqlen_k as f64;
        4.0 * scores * self.head_dim as f64 * visible
    }

    /// Operations for each byte of q, k, v and out moved once, of elements of `bytes` bytes: where a roofline places
    /// the case.
    pub(crate) fn intensity(&self, bytes: usize) -> f64 {
        let rows = self.batch * self.num_heads * self.seqlen_q;
        let keys = self.batch * self.num_kv_heads * self.seqlen_k;
        self.operations() / (2 * (rows + keys) * self.head_dim * bytes) as f64
    }

    /// What is common to the cases of one curve over lengths: heads, head_dim, form, and whether lengths are mixed.
    pub(crate) fn family(&self) -> String {
        let lengths = if self.is_ragged { ", ragged up to S" } else { "" };
        format!(
            "{}/{} heads, head_dim {}, {}{lengths}",
            self.num_heads, self.num_kv_heads, self.head_dim, self.form
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_kind_are_read() {
        let prefill = CaseName::parse("B4_S4096_H32_8_D128_causal").unwrap();
        assert_eq!((prefill.batch, prefill.seqlen_q, prefill.seqlen_k), (4, 4096, 4096));
        assert_eq!((prefill.num_heads, prefill.num_kv_heads, prefill.head_dim), (32, 8, 128));
        assert_eq!((prefill.form.as_str(), prefill.is_decode), ("causal", false));
        let decode = CaseName::parse("dec_B1_H32_8_D128_KV32768_page64").unwrap();
        assert_eq!((decode.seqlen_q, decode.seqlen_k, decode.form.as_str()), (1, 32768, "page64"));
        let cross = CaseName::parse("B1_S16_4096_H8_8_D64_full").unwrap();
        assert_eq!((cross.seqlen_q, cross.seqlen_k, cross.num_kv_heads), (16, 4096, 8));
        let ragged = CaseName::parse("var_B8_S2048_H16_16_D128_causal").unwrap();
        assert!(ragged.is_ragged);
        assert_ne!(ragged.family(), CaseName::parse("B8_S2048_H16_16_D128_causal").unwrap().family());
        assert_eq!((CaseName::parse("overhead_plan"), CaseName::parse("")), (None, None));
    }

    #[test]
    fn every_short_name_stands_for_a_name_with_sizes() {
        for (short, name) in SHORT {
            assert!(CaseName::parse(name).is_some() && CaseName::parse(short).is_none(), "{short}");
            assert_eq!((long(short), long(name)), (name, name));
        }
    }

    #[test]
    fn intensity_is_operations_by_bytes() {
        // 4 * 2048^2 * 128 operations on 4 tensors of 2048 * 128 * 2 bytes.
        assert_eq!(CaseName::parse("B1_S2048_H16_16_D128_full").unwrap().intensity(2), 1024.0);
        let decode = CaseName::parse("dec_B1_H32_32_D128_KV1048576").unwrap().intensity(2);
        assert!((0.99..1.0).contains(&decode), "{decode}");
    }
}
