//! A line of assembly split into mnemonic, operands and modifiers.

use super::operand::Operand;
use crate::target::Target;

/// One machine instruction's text, before it is decoded.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    /// The mnemonic without its encoding suffix.
    pub(crate) mnemonic: String,
    /// Whether the suffix was `_dpp`.
    pub(crate) is_dpp: bool,
    /// Whether the suffix was `_sdwa`.
    pub(crate) is_sdwa: bool,
    /// Operands as text: some are not registers (`vmcnt(0)`, `hwreg(..)`).
    pub(crate) words: Vec<String>,
    pub(crate) modifiers: Modifiers,
    /// Whether a buffer atomic returns the old value (`glc`, `sc0`, `th:TH_ATOMIC_RETURN`).
    pub(crate) returns: bool,
    pub(crate) target: Target,
}

/// `name:value` pairs and flags behind the operands. Decoding takes those it understands; what is left is an error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modifiers(Vec<(String, String)>);

/// Cache policy, which does not change a result here: every access is coherent.
const IGNORED: &[&str] =
    &["glc", "slc", "dlc", "scc", "sc0", "sc1", "nt", "th", "scope", "nv", "r128", "a16"];

impl Statement {
    /// Splits one instruction; a VOPD pair must be cut in two before.
    pub(crate) fn parse(text: &str, target: Target) -> Statement {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let mut mnemonic = name;
        let (mut is_dpp, mut is_sdwa) = (false, false);
        if let Some(base) = mnemonic.strip_suffix("_dpp") {
            (mnemonic, is_dpp) = (base, true);
        }
        if let Some(base) = mnemonic.strip_suffix("_sdwa") {
            (mnemonic, is_sdwa) = (base, true);
        }
        for suffix in ["_e32", "_e64"] {
            mnemonic = mnemonic.strip_suffix(suffix).unwrap_or(mnemonic);
        }
        let mut words = Vec::new();
        let mut modifiers = Vec::new();
        for part in split(rest, ',') {
            for (position, word) in split(part, ' ').into_iter().enumerate() {
                let is_modifier = word.split_once(':').is_some_and(|(key, _)| {
                    key.starts_with(|c: char| c.is_ascii_lowercase())
                        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                });
                if is_modifier {
                    let (key, value) = word.split_once(':').unwrap_or((word, ""));
                    modifiers.push((key.to_string(), value.to_string()));
                } else if position == 0 {
                    words.push(word.to_string());
                } else {
                    modifiers.push((word.to_string(), String::new()));
                }
            }
        }
        let returns = modifiers.iter().any(|(key, value)| {
            matches!(key.as_str(), "glc" | "sc0") || key == "th" && value.contains("ATOMIC_RETURN")
        });
        modifiers.retain(|(key, _)| !IGNORED.contains(&key.as_str()));
        let mnemonic = mnemonic.to_string();
        Statement { mnemonic, is_dpp, is_sdwa, words, modifiers: Modifiers(modifiers), returns, target }
    }

    /// The operands, or the first one that is not understood.
    pub(crate) fn operands(&self) -> Result<Vec<Operand>, String> {
        self.words.iter().map(|word| Operand::parse(word).ok_or_else(|| format!("operand {word}"))).collect()
    }
}

/// Splits at `separator` outside brackets, dropping empty parts.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            c if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

impl Modifiers {
    /// Removes and returns a modifier's value.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }

    /// Removes a flag and says whether it was there.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        self.take(key).is_some()
    }

    /// Removes a number, decimal or hexadecimal.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<i64>, String> {
        self.take(key).map(|text| number(&text).ok_or_else(|| format!("{key}:{text}"))).transpose()
    }

    /// Removes a list of bits such as `op_sel:[0,1]`; what the list does not reach keeps `default`.
    pub(crate) fn bits<const N: usize>(&mut self, key: &str, default: bool) -> Result<[bool; N], String> {
        let mut bits = [default; N];
        if let Some(text) = self.take(key) {
            for (bit, value) in bits.iter_mut().zip(list(&text).ok_or_else(|| format!("{key}:{text}"))?) {
                *bit = value != 0;
            }
        }
        Ok(bits)
    }

    /// Removes a list of numbers such as `quad_perm:[1,0,3,2]`.
    pub(crate) fn numbers(&mut self, key: &str) -> Result<Option<Vec<i64>>, String> {
        self.take(key).map(|text| list(&text).ok_or_else(|| format!("{key}:{text}"))).transpose()
    }

    /// The modifier that nothing took, if any.
    pub(crate) fn first(&self) -> Option<String> {
        self.0
            .first()
            .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}:{value}") })
    }
}

/// A decimal or `0x` number.
pub(crate) fn number(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn list(text: &str) -> Option<Vec<i64>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.split(',').map(|item| number(item.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_split_into_mnemonic_operands_and_modifiers() {
        let mut statement = Statement::parse(
            "v_pk_fma_f32 v[0:1], v[2:3], s[4:5], v[6:7] op_sel_hi:[1,0,1] neg_lo:[0,1,0]",
            Target::Gfx942,
        );
        assert_eq!(statement.mnemonic, "v_pk_fma_f32");
        assert_eq!(statement.words, ["v[0:1]", "v[2:3]", "s[4:5]", "v[6:7]"]);
        assert_eq!(statement.modifiers.bits::<3>("op_sel_hi", true), Ok([true, false, true]));
        assert_eq!(statement.modifiers.bits::<3>("neg_lo", false), Ok([false, true, false]));
        assert_eq!(statement.modifiers.first(), None);
    }

    #[test]
    fn cache_policy_is_dropped_and_an_unknown_flag_stays() {
        let mut statement =
            Statement::parse("global_load_dwordx4 v[0:3], v[4:5], off offset:-16 sc0 nt foo", Target::Gfx942);
        assert_eq!(statement.modifiers.number("offset"), Ok(Some(-16)));
        assert_eq!(statement.modifiers.first().as_deref(), Some("foo"));
        assert_eq!(statement.words, ["v[0:3]", "v[4:5]", "off"]);
    }
}
